"""The command-line application: its commands, version, errors and exit codes."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from edje_qdrant.cli.attach import attach, detach
from edje_qdrant.cli.collection import (
    compact,
    copy,
    delete,
    export,
    fit_codec,
    import_,
    info,
    repair,
    transcode,
    update,
    verify,
)
from edje_qdrant.cli.convert import convert
from edje_qdrant.cli.demo import demo
from edje_qdrant.cli.eval import EvalCommand, calibrate, evaluate
from edje_qdrant.cli.export_onnx import export_model
from edje_qdrant.cli.ingest import ingest
from edje_qdrant.cli.mcp import mcp
from edje_qdrant.cli.pairs import classify, match, score_pairs
from edje_qdrant.cli.plan import plan
from edje_qdrant.cli.search import search
from edje_qdrant.cli.serve import serve
from edje_qdrant.cli.train import train
from edje_qdrant.errors import EdjeError, MissingExtraError, without_long_values
from edje_qdrant.files import reason_of
from edje_qdrant.text import printable
from edje_qdrant.version import __version__

__all__ = ["app", "main"]

_HELP = "Find images by text in two stages: vector search, then a joint encoder."
_OLD_OPTIONS = {"pictures": "images"}  # still accepted, not shown in the help


class _Commands(TyperGroup):
    """Command group that reports every error in one line on stderr."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # file names may not be printable
                stream.reconfigure(errors="backslashreplace")
        kwargs["standalone_mode"] = False
        try:
            code = super().main(*args, **kwargs)
        except Exception as error:
            # Usage errors are click's own class or Typer's, by version; both have this method.
            if not hasattr(error, "format_message"):
                raise
            code = _print_error(f"{error.format_message()} See --help.")
        sys.exit(code or 0)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except EdjeError as error:
            raise typer.Exit(_print_error(str(error))) from error
        except ModuleNotFoundError as error:
            missing = MissingExtraError.of(error)
            if missing is None:
                raise
            raise typer.Exit(_print_error(str(missing))) from error
        except OSError as error:
            if error.errno is None or isinstance(error, BrokenPipeError):
                raise
            where = "" if error.filename is None else f"cannot use {error.filename}: "
            raise typer.Exit(_print_error(f"{where}{reason_of(error)}")) from error
        except KeyboardInterrupt as error:
            _print_error("interrupted; what was written before is kept")
            raise typer.Exit(130) from error


def _print_error(message: str) -> int:
    line = without_long_values(" ".join(message.split()))
    typer.echo(f"error: {printable(line)}", err=True)
    return 2


app = typer.Typer(
    cls=_Commands,
    help=_HELP,
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"token_normalize_func": lambda name: _OLD_OPTIONS.get(name, name)},
)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit: code 2 for an error, 130 for an interrupt."""
    warnings.formatwarning = lambda message, *_, **__: f"warning: {printable(str(message))}\n"
    app(args, prog_name="edje-qdrant")


@app.callback(help=_HELP)
def start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Print the version or the help where no command is given."""
    if version:
        typer.echo(f"edje-qdrant {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for _command in (
    *(ingest, search, serve, mcp, plan, info, convert, demo),
    *(verify, repair, compact, transcode, export, copy, delete, update, fit_codec),
    *(match, classify, score_pairs, attach, detach, train, calibrate),
):
    app.command(_command.__name__.replace("_", "-"))(_command)
app.command("import")(import_)
app.command("export-onnx")(export_model)
app.command("eval", cls=EvalCommand)(evaluate)
