"""Run the command line, in this process or in one of its own, and read what it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from typing import Any

from typer import testing

from edje_qdrant.cli import app as cli

# `CliRunner` builds the tree of commands for each call, which takes longer than most of them run.
testing._get_command = cache(testing._get_command)  # type: ignore[attr-defined]


def run(*arguments: object, **options: Any) -> testing.Result:
    return testing.CliRunner().invoke(cli.app, [str(a) for a in arguments], **options)


def json_of(result: testing.Result) -> dict[str, Any]:
    """Check that a command succeeded and return its last line, read as JSON."""
    assert result.exit_code == 0, result.output
    data: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return data


def refused(result: testing.Result) -> str:
    """Check that a command was refused in one line and return the line."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def child(*arguments: object, **more: Any) -> subprocess.Popen[str]:
    """Start a command as a process."""
    command = [sys.executable, "-m", "edje_qdrant", *(str(a) for a in arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, **more)
