"""Write `cli.md` from the commands' own help; a test fails when it is stale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typer.main import get_command
from typer.testing import CliRunner

from edje_qdrant.cli.app import app

PAGE = Path(__file__).parent / "cli.md"
HEAD = """# Command line

Written by `python docs/write_cli.py` from the commands' own help.

Every command but `serve` has `--json`: it prints one JSON object as the last line of standard
output. Errors are one line on standard error, with exit code 2; a check that finds damage,
and an ingest or attach in which every image failed, exit with 1; 130 after Ctrl-C. Text output
shows control characters of file names escaped, and JSON has them as JSON escapes.
`EDJE_QDRANT_URL` and `EDJE_QDRANT_API_KEY` name a server and its key. Earlier names of options are
still accepted; a note on standard error names the new one.

`edje-qdrant --install-completion` sets up completion of commands and options in bash, zsh, fish or
PowerShell.
"""


def page() -> str:
    """Return the up-to-date page."""
    known: dict[str, Any] = getattr(get_command(app), "commands")  # noqa: B009 - attribute of click's Group
    groups: dict[str, list[str]] = {}
    for name, command in known.items():
        groups.setdefault(command.rich_help_panel, []).append(name)
    listed = (
        f"{group}: {', '.join(_link(name) for name in names)}" for group, names in groups.items()
    )
    parts = [HEAD, "".join(f"- {line}.\n" for line in listed)]
    for group, names in groups.items():
        parts.append(f"## {group} commands\n")
        for name in names:
            result = CliRunner().invoke(
                app, [name, "--help"], prog_name="edje-qdrant", env={"COLUMNS": "88"}
            )
            text = "\n".join(line.rstrip() for line in result.output.strip().splitlines())
            parts.append(f"### {name}\n\n```\n{text}\n```\n")
    return "\n".join(parts)


def _link(name: str) -> str:
    return f"[{name}](#{name})"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
