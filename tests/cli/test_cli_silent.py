"""What would come to nothing without a word says so: unknown fields, taken ports, no recipe."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_line import json_of, refused, run

from edje_qdrant.collection.collection import ImageCollection
from edje_qdrant.errors import ConfigError

WriteImages = Callable[..., list[Path]]


@pytest.fixture(scope="module")
def index(
    tmp_path_factory: pytest.TempPathFactory, write_images: WriteImages, tiny_folder: Path
) -> Path:
    """An index in which all images have an album and a year; nothing may be written to it."""
    folder = tmp_path_factory.mktemp("silent")
    write_images(folder / "images", 4)
    place = ["--index", folder / "index"]
    json_of(run("ingest", folder / "images", *place, "--model", tiny_folder, "--json"))
    with ImageCollection.open(folder / "index", "images") as collection:
        fields = [{"album": "trip", "year": 2018 + row} for row in range(4)]
        collection.update_payload(dict(zip(collection.ids(), fields, strict=True)))
    return folder / "index"


@pytest.mark.parametrize(
    "command", [["search", "a red ring"], ["delete"], ["update", "seen=1"], ["delete", "--dry-run"]]
)
def test_an_unknown_field_is_named_with_the_nearest(command: list[str], index: Path) -> None:
    result = run(*command, "--where", "albun=trip", "--index", index)
    assert result.exit_code == 0
    (line,) = result.stderr.splitlines()
    assert line.startswith("note: --where: ")
    assert "albun" in line
    assert "'album'" in line
    compared = run(*command, "--where", "yaer>=2020", "--index", index, "--json")
    assert "'year'" in compared.stderr


def test_a_field_that_is_known_is_not_remarked_on(index: Path) -> None:
    for where in ("album=trip", "year>=2020", "year=1999", "taken_at>=2024-06-01"):
        stderr = run("search", "x", "--where", where, "--index", index).stderr
        assert stderr == "" or "taken_at" in stderr


def test_ranges_work_in_every_command(index: Path, tmp_path: Path) -> None:
    own = ["--index", shutil.copytree(index, tmp_path / "index")]
    hits = json_of(run("search", "x", "--where", "year>=2020", *own, "--json"))["hits"]
    assert len(hits) == 2
    newer = ["--where", "year>2020"]
    assert json_of(run("update", "a=1", *newer, *own, "--yes", "--json")) == {"updated": 1}
    older = ["--where", "year<2020"]
    assert json_of(run("delete", *older, *own, "--yes", "--json"))["deleted"] == 2


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that another program listens on."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


@pytest.mark.parametrize("command", [["serve"], ["mcp", "--http"]])
def test_a_taken_port_is_an_error_before_anything_is_loaded(
    command: list[str], taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("uvicorn", reason="needs the extra web")
    pytest.importorskip("mcp", reason="needs the extra mcp")
    monkeypatch.delenv("EDJE_QDRANT_SERVICE_KEY", raising=False)
    line = refused(run(*command, "--index", "nowhere", "--port", taken))
    assert f"port {taken} of 127.0.0.1 is in use by another program" in line
    assert "--port" in line
    assert "--host no.such.name.invalid" in refused(
        run(*command, "--index", "nowhere", "--host", "no.such.name.invalid", "--without-key")
    )


def test_a_bound_port_is_not_served_before_it_listens() -> None:
    pytest.importorskip("uvicorn", reason="needs the extra web")
    from edje_qdrant.web.serve import bound_sockets, listen

    sockets = bound_sockets("127.0.0.1", 0)
    address = sockets[0].getsockname()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    assert listen(sockets) == address[1]
    socket.create_connection(address).close()
    with pytest.raises(ConfigError, match="in use"):
        bound_sockets(*address)
    sockets[0].close()
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1 is no address of this machine"):
        bound_sockets("192.0.2.1", 0)


def test_training_asks_for_a_recipe(tmp_path: Path) -> None:
    line = refused(run("train", "--out", tmp_path / "out"))
    assert "--recipe FILE" in line
    recipes = Path(__file__).parent.parent.parent / "examples" / "recipes"
    assert {path.name for path in recipes.glob("*.toml")} - {"demo.toml"} <= set(
        line.replace(",", " ").replace(";", " ").split()
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="closed pipes are told otherwise there")
def test_help_into_a_closed_pipe_has_no_traceback() -> None:
    command = [sys.executable, "-m", "edje_qdrant", "search", "--help"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""


def test_a_field_to_group_by_that_no_image_has(index: Path) -> None:
    place = ["--index", index]
    result = run("search", "x", "--group-by", "albun", *place)
    assert result.stderr == "note: --group-by: no image that was found has the field 'albun'\n"
    assert run("search", "x", "--group-by", "album", *place).stderr == ""


def test_a_file_for_a_folder_and_no_cursor(index: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    for command in (["search", "x"], ["info"], ["ingest", tmp_path]):
        line = refused(run(*command, "--index", tmp_path / "file"))
        assert f"--index {tmp_path / 'file'} is a file" in line
    line = refused(run("search", "--cursor", "abc", "--index", index))
    assert "this is no whole cursor" in line


def test_usage_errors_name_the_help_of_the_command() -> None:
    assert refused(run("match")).endswith("; see root match --help")
    line = refused(run("plan", "--num-images", "x", "--qps", "1"))
    assert "'x' is no number; write 10000, 10k, 2M or 1e6" in line
    assert line.endswith("see root plan --help")


_INTERRUPTED = """
import sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "edje_qdrant.cli.app":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
from edje_qdrant.__main__ import main
main()
"""


def test_an_interrupt_while_modules_are_loaded_is_one_line() -> None:
    done = subprocess.run([sys.executable, "-c", _INTERRUPTED], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n")
