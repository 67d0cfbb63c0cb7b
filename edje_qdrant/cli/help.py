"""Help of the command line: grouped commands and options, examples, earlier names of options."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from edje_qdrant.errors import ConfigError

__all__ = [
    "COLLECTION",
    "MODEL",
    "NEW_COLLECTION",
    "OUTPUT",
    "READING",
    "EdjeCommand",
    "GroupedCommands",
    "chosen_out",
    "note",
]

# Groups of options in the help of a command, in this order; other options come first.
COLLECTION = "Collection"
NEW_COLLECTION = "New collection"
MODEL = "Model"
READING = "Image files"
OUTPUT = "Output"
_ORDER = (COLLECTION, NEW_COLLECTION, MODEL, READING, OUTPUT)

_WHOLE = 200  # characters of a first sentence; the formatter wraps it

# Earlier names of options, without their dashes: still accepted, with a note.
_OLD_NAMES: dict[str, dict[str, str]] = {
    "calibrate": {"candidates": "num-candidates"},
    "demo": {
        "candidates": "num-candidates",
        "folder": "out",
        "images": "scenes",
        "pictures": "scenes",
    },
    "fit-codec": {"images": "source", "pictures": "source"},
    "match": {"candidates": "num-candidates"},
    "mcp": {"ingest": "ingest-from"},
    "plan": {
        "accelerator": "device",
        "candidates": "num-candidates",
        "images": "num-images",
        "pictures": "num-images",
    },
    "search": {"candidates": "num-candidates"},
    "verify": {"images": "files", "pictures": "files"},
}
_OLD_EVERYWHERE = {"pictures": "images"}

# Numbers as people write them: 10000, 10_000, 10,000, 1e6, 1.5M.
_NUMBER = re.compile(r"(-?(?:\d{1,3}(?:,\d{3})+|[\d_]+)(?:\.\d+)?(?:e\d{1,3})?) ?([kmb]?)", re.I)
_TIMES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}


class EdjeCommand(TyperCommand):
    """Command with grouped options, examples, and notes on earlier names of options.

    The help is plain text, without the library rich, whose import takes longer than all the rest.
    Numbers (options with `N`) may be written as 10_000, 10,000, 10k, 1.5M, 2B or 1e6.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.token_normalize_func = _renamer(self.name or "")
        args = _with_plain_numbers(self.params, args, ctx)
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed

    def get_help_option(self, ctx: Any) -> Any:
        return _quick(super().get_help_option(ctx))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:  # noqa: ARG002 - overrides
        return ["[OPTIONS]", *(_usage(param) for param in _arguments(self))]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        arguments = [(_name(param), param.help or "") for param in _arguments(self)]
        if arguments:
            with formatter.section("Arguments"):
                formatter.write_dl(arguments)
        groups: dict[str, list[tuple[str, str]]] = {"": []}
        groups |= {name: [] for name in _ORDER}
        params: list[Any] = self.get_params(ctx)  # their classes depend on Typer's version
        for param in params:
            if param.param_type_name == "argument" or param.hidden:
                continue
            if param.metavar is None and not param.is_flag:
                param.metavar = param.name.upper()  # not the name of its Python type
            panel = OUTPUT if param.name == "help" else getattr(param, "rich_help_panel", None)
            groups.setdefault(panel or "", []).append(param.get_help_record(ctx))
        for name, records in groups.items():
            if records:
                with formatter.section(name or "Options"):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - overrides
        _write_examples(self.epilog, formatter)


class GroupedCommands(TyperGroup):
    """Group of commands whose help lists them by `rich_help_panel`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for param in self.params:
            _quick(param)
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed

    def get_help_option(self, ctx: Any) -> Any:
        return _quick(super().get_help_option(ctx))

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        width = max(len(name) for name in self.list_commands(ctx))
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            if not command.hidden:
                group = groups.setdefault(command.rich_help_panel or "Commands", [])
                text = command.get_short_help_str(_WHOLE)
                group.append((name.ljust(width), text))
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - overrides
        _write_examples(self.epilog, formatter)


def note(message: str) -> None:
    """Print a note on stderr."""
    typer.echo(f"note: {message}", err=True)


def chosen_out(out: Path | None, argument: Path | None) -> Path:
    """Return where to write: --out, or the argument that was its earlier form.

    Raises:
        ConfigError: Neither is given, or both are.
    """
    if out is not None and argument is not None:
        raise ConfigError(f"there is one --out, and {str(argument)!r} beside it; leave it out")
    if argument is not None:
        note(f"where to write is an option now: --out {argument}")
    found = argument if out is None else out
    if found is None:
        raise ConfigError("say where to write: --out")
    return found


def _renamer(command: str) -> Callable[[str], str]:
    """Return a function that turns earlier names of a command's options into those of today."""
    old = {**_OLD_EVERYWHERE, **_OLD_NAMES.get(command, {})}
    noted: set[str] = set()

    def today(name: str) -> str:
        new = old.get(name)
        if new is None:
            return name
        if name not in noted:
            noted.add(name)
            note(f"--{name} is called --{new} now")
        return new

    return today


def _with_plain_numbers(params: Iterable[Any], args: Sequence[str], ctx: Any) -> list[str]:
    """Return the arguments of a command with the values of its options with `N` in digits.

    Raises:
        typer.BadParameter: A value is no number.
    """
    names = {name: param for param in params if param.metavar == "N" for name in param.opts}
    given = [*args]
    for place, arg in enumerate(given):
        if arg == "--":
            break
        name, equals, value = arg.partition("=")
        if name not in names or (not equals and place + 1 == len(given)):
            continue
        plain = _plain_number((value if equals else given[place + 1]).strip())
        try:
            float(plain)
        except ValueError:
            raise typer.BadParameter(
                f"{plain!r} is no number; write 10000, 10k, 2M or 1e6", ctx, names[name]
            ) from None
        if equals:
            given[place] = f"{name}={plain}"
        else:
            given[place + 1] = plain
    return given


def _plain_number(text: str) -> str:
    """Return a number in digits alone; other texts unchanged."""
    found = _NUMBER.fullmatch(text)
    if found is None or not any(map(str.isdigit, found[1])):
        return text
    number = Decimal(re.sub("[,_]", "", found[1])) * _TIMES[found[2].lower()]
    return str(int(number)) if number == number.to_integral_value() else str(number)


def _quick(option: Any) -> Any:
    """Return an option; a flag has a bool as its default, for which Typer imports no pydantic."""
    if option is not None and option.is_flag and option.default is None:
        option.default = False
    return option


def _arguments(command: Any) -> list[Any]:
    return [p for p in command.params if p.param_type_name == "argument" and not p.hidden]


def _name(param: Any) -> str:
    return str(param.metavar or param.name.upper())


def _usage(param: Any) -> str:
    name = f"{_name(param)}..." if param.nargs != 1 else _name(param)
    return name if param.required else f"[{name}]"


def _write_examples(examples: str | None, formatter: Any) -> None:
    lines: Sequence[str] = (examples or "").splitlines()
    if lines:
        with formatter.section("Example" if len(lines) == 1 else "Examples"):
            formatter.write(_indented(lines))


def _indented(lines: Iterable[str]) -> str:
    """Return lines that the formatter must not wrap, so that they can be copied."""
    return "".join(f"  {line}\n" for line in lines)
