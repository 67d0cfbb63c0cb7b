"""Write `cli.md` from the commands' own help; a test fails when it is stale."""

from __future__ import annotations

from pathlib import Path

from typer.main import get_command
from typer.testing import CliRunner

from edje_qdrant.cli.app import app

# Commands to list first.
FIRST = (
    "demo",
    "ingest",
    "search",
    "serve",
    "match",
    "classify",
    "info",
    "eval",
    "convert",
    "train",
)
PAGE = Path(__file__).parent / "cli.md"
HEAD = """# Command line

Written by `python docs/write_cli.py` from the commands' own help.

Every command but `serve` has `--json`: it prints one JSON object as the last line of standard
output. Errors are one line on standard error, with exit code 2; a check that finds damage,
and an ingest or attach in which every image failed, exit with 1. Text output shows control
characters of file names escaped, and JSON has them as JSON escapes. `EDJE_QDRANT_URL` and
`EDJE_QDRANT_API_KEY` name a server and its key. `--pictures`, the earlier spelling of `--images`,
is still accepted.
"""


def page() -> str:
    """Return the up-to-date page."""
    parts = [HEAD]
    known = getattr(get_command(app), "commands")  # noqa: B009 - attribute of click's Group
    for command in dict.fromkeys([*FIRST, *known]):
        result = CliRunner().invoke(
            app, [command, "--help"], prog_name="edje-qdrant", env={"COLUMNS": "88"}
        )
        text = "\n".join(line.rstrip() for line in result.output.strip().splitlines())
        parts.append(f"## {command}\n\n```\n{text}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
