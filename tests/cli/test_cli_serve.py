"""What the command `serve` refuses; what it serves is in tests/web."""

from __future__ import annotations

import subprocess
import sys

import pytest
from command_line import run

from edje_qdrant.errors import ConfigError

pytest.importorskip("fastapi", reason="needs the extra web")


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["--host", "0.0.0.0"], "EDJE_QDRANT_SERVICE_KEY"),
        (["--images", "nowhere"], "is not a folder"),
        (["--ingest"], "--images"),
        (["--follow-alias"], "a folder has no aliases"),
        (["--allow-fetch", "https://images.example.com"], "is not a host"),
        (["--allow-fetch", "a.example", "--allow-fetch", "169.254.169.254"], "nothing is ever"),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_is_loaded(args, match, monkeypatch):
    monkeypatch.delenv("EDJE_QDRANT_SERVICE_KEY", raising=False)
    result = run("serve", "--index", "x", *args)
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert match in line


def test_options_for_images_of_requests_become_settings(monkeypatch):
    def stop(**options):
        given.update(options)
        raise ConfigError("seen")

    given = {}
    monkeypatch.setattr("edje_qdrant.web.settings.ServiceSettings", stop)
    names = ["--allow-fetch", "a.example", "--allow-fetch", "*.b.example:8080"]
    result = run("serve", "--index", "x", *names, "--image-cache-mb", "3")
    assert "seen" in result.stderr
    assert given["allow_fetch"] == ("a.example", "*.b.example:8080")
    assert given["image_cache_bytes"] == 3 << 20


@pytest.mark.parametrize(
    ("command", "package"),
    [
        (["serve"], "fastapi"),
        (["serve"], "uvicorn"),
        (["mcp", "--http"], "uvicorn"),
        pytest.param(["mcp", "--http"], "fastapi", marks=pytest.mark.slow),
    ],
)
def test_without_its_extra_one_line_says_so(command, package):
    code = (
        "import sys\n"
        f"sys.modules[{package!r}] = None\n"
        "from edje_qdrant.cli.app import main\n"
        f"main([*{command!r}, '--index', 'x'])\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 2
    assert found.stderr == (
        f"error: {package} is not installed; run: pip install 'edje-qdrant[web]'\n"
    )
