"""Help of the command line: groups, names of values, examples, earlier names, completion."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from command_line import json_of, refused, run
from typer.main import get_command

from edje_qdrant.cli.app import app

COMMANDS: dict[str, Any] = getattr(get_command(app), "commands")  # noqa: B009 - of click's Group
GROUPS = ["Search:", "Collection:", "Training:", "Service:", "Tools:"]


def examples(text: str) -> list[list[str]]:
    """Return the arguments of the examples in a help text."""
    lines = re.split(r"\nExamples?:\n", text)[1].splitlines()
    return [shlex.split(line)[1:] for line in lines]


def test_commands_are_listed_in_groups() -> None:
    text = run("-h").stdout
    assert text == run("--help").stdout == run().stdout
    places = [text.index(f"\n{group}\n") for group in GROUPS]
    assert places == sorted(places)
    search, collection = text[places[0] : places[1]], text[places[1] : places[2]]
    assert re.search(r"^  search +Find the images", search, re.MULTILINE)
    assert re.search(r"^  delete +Delete images", collection, re.MULTILINE)
    assert "..." not in text[places[0] :]
    assert "--install-completion" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_no_type_and_its_examples_can_be_parsed(name: str) -> None:
    text = run(name, "-h").stdout
    assert not re.search(r"<(list|str|int|float|path|bool|uuid)|\[\[", text)
    assert not re.search(r"[{}]", text.splitlines()[0])
    found = examples(text)
    assert found
    for command, *arguments in found:
        assert command == name
        assert COMMANDS[name].make_context(name, arguments).params


def test_examples_of_the_whole_can_be_parsed() -> None:
    for command, *arguments in examples(run("-h").stdout):
        COMMANDS[command].make_context(command, arguments)


def test_options_are_grouped() -> None:
    titles = re.findall(r"^(\S.*):$", run("ingest", "-h").stdout, re.MULTILINE)
    assert titles == [
        "Arguments", "Options", "Collection", "New collection", "Model", "Image files", "Output",
        "Examples",
    ]  # fmt: skip


def test_one_name_has_one_meaning() -> None:
    takes: dict[str, set[str]] = {}
    for command in COMMANDS.values():
        for param in command.params:
            for option in param.opts:
                if option.startswith("--") and not getattr(param, "hidden", False):
                    takes.setdefault(option, set()).add("flag" if param.is_flag else param.metavar)
    assert takes["--images"] == {"FOLDER"}
    assert takes["--num-candidates"] == {"N", "N..."}  # eval measures several
    assert not {"--candidates", "--pictures", "--folder"} & {*takes}
    assert {name for name, kinds in takes.items() if {"flag"} < kinds} == set()


@pytest.mark.parametrize(
    ("arguments", "note"),
    [
        (["plan", "--images", "1e6", "--qps", "1"], "--images is called --num-images now"),
        (["plan", "--images=1e6", "--qps", "1"], "--images is called --num-images now"),
        (
            ["plan", "--num-images", "1e6", "--qps", "1", "--candidates", "9"],
            "--candidates is called --num-candidates now",
        ),
    ],
)
def test_an_earlier_name_is_taken_with_a_note(arguments: list[str], note: str) -> None:
    result = run(*arguments, "--json")
    assert json_of(result)["gpus"]
    assert result.stderr == f"note: {note}\n"
    assert note.split()[0] not in run(arguments[0], "-h").stdout.replace(note.split()[-2], "")


def test_where_to_write_was_an_argument(tmp_path: Path) -> None:
    result = run("export", tmp_path / "a.tar", "--index", tmp_path)
    note, error = result.stderr.splitlines()
    assert note == f"note: where to write is an option now: --out {tmp_path / 'a.tar'}"
    assert error.startswith("error: no collection")
    assert "--out" in refused(run("export", "--index", tmp_path))
    assert "beside it" in refused(run("export", "b.tar", "--out", "a.tar", "--index", tmp_path))


def test_completion_is_offered_and_works() -> None:
    environment = {
        "_EDJE_QDRANT_COMPLETE": "complete_bash",
        "COMP_WORDS": "edje-qdrant sea",
        "COMP_CWORD": "1",
    }
    assert run(env=environment, prog_name="edje-qdrant").stdout.split() == ["search"]
    environment["COMP_WORDS"], environment["COMP_CWORD"] = "edje-qdrant search --num", "2"
    assert run(env=environment, prog_name="edje-qdrant").stdout.split() == ["--num-candidates"]


def test_completion_that_cannot_be_installed_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    line = refused(
        run("--install-completion", env={"HOME": str(tmp_path / "home"), "SHELL": "/bin/bash"})
    )
    assert str(tmp_path / "home") in line
