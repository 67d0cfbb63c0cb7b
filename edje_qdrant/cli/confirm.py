"""Questions before something is deleted or overwritten, and the options that answer them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from edje_qdrant.errors import ConfigError
from edje_qdrant.text import printable

__all__ = ["EXAMPLES", "DryRun", "Yes", "agreed", "can_ask", "check_replaced", "path_of"]

#: Examples of what would be changed that a question shows.
EXAMPLES = 3

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it without a question.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show what would be done, and change nothing.")
]


def path_of(image_id: str, payload: Mapping[str, Any]) -> str:
    """Return how to show an image: its path, or else its id."""
    return str(payload.get("path") or image_id)


def can_ask() -> bool:
    """Return whether somebody at a terminal can answer."""
    return sys.stdin is not None and sys.stdin.isatty()


def agreed(
    what: str, examples: Sequence[str], count: int, *, yes: bool, dry_run: bool = False
) -> bool:
    """Return whether to go on: as --yes and --dry-run say, else as a person at the terminal says.

    Args:
        what: What would be done: "17 of 80 images would be deleted".
        examples: Paths of some of them; the first three are shown.
        count: How many there are.
        yes: --yes was given.
        dry_run: --dry-run was given; what would be done is then printed on stderr.

    Raises:
        ConfigError: Nothing can be asked: there is no terminal.
    """
    if yes and not dry_run:
        return True
    shown = [printable(example) for example in examples[:EXAMPLES]]
    more = count - len(shown)
    if not dry_run and not can_ask():
        some = ", ".join(shown) + (" ..." if more > 0 else "")
        raise ConfigError(
            f"{what}{f' ({some})' if shown else ''}; this was not done, as there is no terminal "
            "to ask at: give --yes to do it"
        )
    lines = [what, *(f"  {line}" for line in shown)]
    if shown and more > 0:
        lines.append(f"  and {more:,} more")
    typer.echo("\n".join(lines), err=True)
    return not dry_run and _says_yes()


def check_replaced(path: Path, *, yes: bool) -> None:
    """Ask before a file, or the model in a folder, is replaced.

    Raises:
        ConfigError: Nothing can be asked: there is no terminal.
        Exit: The answer is no.
    """
    path = path.expanduser()
    there = path / "config.json" if path.is_dir() else path
    if there.exists() and not agreed(
        f"{path} is there already and would be replaced", [], 1, yes=yes
    ):
        raise typer.Exit(1)


def _says_yes() -> bool:
    """Ask on stderr; Typer's own question also writes to stdout, which --json may go to."""
    typer.echo("Go on? [y/N] ", nl=False, err=True)
    answer = sys.stdin.readline()
    if not answer:
        typer.echo(err=True)
        raise typer.Abort
    return answer.strip().lower() in ("y", "yes")
