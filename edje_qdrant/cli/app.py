"""The command-line application: its commands, version, errors and exit codes."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Callable, Sequence
from inspect import cleandoc
from typing import Annotated, Any

import typer

from edje_qdrant.cli.attach import attach, detach
from edje_qdrant.cli.collection import (
    compact,
    delete,
    info,
    repair,
    text_fields,
    update,
    verify,
)
from edje_qdrant.cli.convert import convert
from edje_qdrant.cli.demo import demo
from edje_qdrant.cli.duplicates import duplicates
from edje_qdrant.cli.eval import EvalCommand, calibrate, evaluate
from edje_qdrant.cli.export_onnx import export_model
from edje_qdrant.cli.help import EdjeCommand, GroupedCommands
from edje_qdrant.cli.ingest import ingest
from edje_qdrant.cli.mcp import mcp
from edje_qdrant.cli.migrate import migrate
from edje_qdrant.cli.pairs import classify, match, score_pairs
from edje_qdrant.cli.plan import plan
from edje_qdrant.cli.search import search
from edje_qdrant.cli.serve import serve
from edje_qdrant.cli.train import train
from edje_qdrant.cli.transfer import copy, export, fit_codec, import_, transcode
from edje_qdrant.errors import EdjeError, MissingExtraError, without_long_values
from edje_qdrant.files import reason_of
from edje_qdrant.text import printable
from edje_qdrant.version import __version__

__all__ = ["app", "main"]

_HELP = "Find images by text in two stages: vector search, then a joint encoder."
_EXAMPLES = """
edje-qdrant ingest ~/Pictures --index ./photos --model shahafw/edje-vl-image-retrieval-reranker
edje-qdrant search "a dog in the snow" --index ./photos
edje-qdrant serve --index ./photos --images ~/Pictures
"""


class _Commands(GroupedCommands):
    """Command group that reports every error in one line on stderr."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # file names may not be printable
                stream.reconfigure(errors="backslashreplace")
        kwargs["standalone_mode"] = False
        try:
            code = super().main(*args, **kwargs)
        except OSError as error:  # such as --install-completion in a folder that is read-only
            code = _print_os_error(error)
        except Exception as error:
            # Usage errors are click's own class or Typer's, by version; both have this method.
            if not hasattr(error, "format_message"):
                raise
            where = getattr(getattr(error, "ctx", None), "command_path", "edje-qdrant")
            message = error.format_message().rstrip(".")
            code = _print_error(f"{message}; see {where} --help")
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
            raise typer.Exit(_print_os_error(error)) from error
        except (KeyboardInterrupt, typer.Abort) as error:  # the latter at a question
            _print_error("interrupted; what was written before is kept")
            raise typer.Exit(130) from error


def _print_os_error(error: OSError) -> int:
    if error.errno is None or isinstance(error, BrokenPipeError):
        raise error
    where = "" if error.filename is None else f"cannot use {error.filename}: "
    return _print_error(f"{where}{reason_of(error)}")


def _print_error(message: str) -> int:
    line = without_long_values(" ".join(message.split()))
    typer.echo(f"error: {printable(line)}", err=True)
    return 2


app = typer.Typer(
    cls=_Commands,
    help=_HELP,
    invoke_without_command=True,
    epilog=_EXAMPLES.strip(),
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
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


# Group in the help -> commands, each with examples, which a test parses.
_COMMANDS: dict[str, dict[Callable[..., None], str]] = {
    "Search": {
        search: """
            edje-qdrant search "a dog in the snow" --index ./photos
            edje-qdrant search "a dog" --index ./photos --where album=2024 --top-k 5
            edje-qdrant search --image dog.jpg --index ./photos
        """,
        match: 'edje-qdrant match dog.jpg "a dog in the snow" "a cat on a sofa"',
        classify: "edje-qdrant classify dog.jpg dog cat horse",
    },
    "Collection": {
        ingest: """
            edje-qdrant ingest ~/Pictures --index ./photos --model ./edje
            edje-qdrant ingest list.jsonl --url http://localhost:6333 --collection photos
        """,
        info: "edje-qdrant info --index ./photos",
        update: "edje-qdrant update album=2024 rating=5 --where trip=lisbon --index ./photos",
        delete: """
            edje-qdrant delete --where album=2019 --index ./photos --dry-run
            edje-qdrant delete --id 7b0b3c5e-6d0c-5a6e-9c55-0e1f3a9f2d11 --index ./photos --yes
        """,
        duplicates: """
            edje-qdrant duplicates --index ./photos --out duplicates.png
            edje-qdrant duplicates --index ./photos --list
        """,
        text_fields: """
            edje-qdrant text-fields caption,path --index ./photos
            edje-qdrant text-fields --drop --index ./photos
        """,
        verify: "edje-qdrant verify --index ./photos --files",
        repair: "edje-qdrant repair --index ./photos",
        compact: "edje-qdrant compact --index ./photos",
        migrate: """
            edje-qdrant migrate --index ./photos --model ./new
            edje-qdrant migrate --index ./photos --model ./new --texts searches.txt --cut-over
            edje-qdrant migrate --index ./photos --rollback
            edje-qdrant migrate --index ./photos --drop-old
        """,
        transcode: "edje-qdrant transcode pq32 --index ./photos",
        fit_codec: "edje-qdrant fit-codec pq32 --out pq32.safetensors --index ./photos",
        export: "edje-qdrant export --out photos.tar --index ./photos",
        import_: "edje-qdrant import photos.tar --index ./restored",
        copy: "edje-qdrant copy ./photos http://localhost:6333",
        attach: "edje-qdrant attach --collection mine --path-field path --url http://localhost:6333",
        detach: "edje-qdrant detach --collection mine --url http://localhost:6333",
    },
    "Training": {
        train: "edje-qdrant train --recipe mine.toml --out runs/mine --set optimisation.steps=500",
        evaluate: "edje-qdrant eval dataset_coco.json --images ./coco --split test --model ./edje",
        calibrate: "edje-qdrant calibrate mine.jsonl --model ./edje --out ./edje-calibrated",
        score_pairs: "edje-qdrant score-pairs pairs.jsonl --out scores.jsonl --keep-top 0.3",
        convert: "edje-qdrant convert pytorch_model.pth --siglip google/siglip2-large-patch16-384 "
        "--language-model ./minilm --out ./edje",
        export_model: "edje-qdrant export-onnx --out edje.onnx --model ./edje --text-encoder",
    },
    "Service": {
        serve: """
            edje-qdrant serve --index ./photos --images ~/Pictures
            edje-qdrant serve --url http://localhost:6333 --port 9000
        """,
        mcp: "edje-qdrant mcp --index ./photos --images ~/Pictures",
    },
    "Tools": {
        demo: "edje-qdrant demo",
        plan: "edje-qdrant plan --num-images 10000 --device cpu --cores 2",
    },
}
_NAMES = {import_: "import", export_model: "export-onnx", evaluate: "eval"}

for _group, _commands in _COMMANDS.items():
    for _command, _examples in _commands.items():
        app.command(
            _NAMES.get(_command, _command.__name__.replace("_", "-")),
            cls=EvalCommand if _command is evaluate else EdjeCommand,
            epilog=cleandoc(_examples),
            rich_help_panel=_group,
        )(_command)
