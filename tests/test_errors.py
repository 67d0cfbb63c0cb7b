from __future__ import annotations

import importlib.metadata
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edje_qdrant import errors
from edje_qdrant.errors import LOWEST, EdjeError, UnsupportedVersionError
from edje_qdrant.types import FailedImage

EXAMPLES = [
    errors.ConfigError("no"),
    errors.CheckpointError("no", path="/m", missing=["a"], mismatched={"b": ((1,), (2,))}),
    errors.ImageReadError("/a.png", "broken"),
    errors.ImagesNotFoundError("gone", ["an-id"]),
    errors.KeyRefusedError("no", location="http://q"),
    errors.UnknownOptionError("no", ["topk"]),
    errors.StoreError("no"),
    errors.CollectionNotFoundError("/photos", "images", ["other"]),
    errors.CollectionExistsError("/photos", "images"),
    errors.CollectionLockedError("/photos"),
    errors.TokensNotFoundError("no", ["1"]),
    errors.ImagesDeletedError("no", ["1"]),
    errors.TokensCorruptError("no", ["1"]),
    errors.ContractMismatchError("no", {"dim": 1}, {"dim": 2}),
    errors.EngineUnavailableError("no", location="http://q"),
    errors.RateLimitedError("no", location="http://q", retry_after=60.0),
    errors.MissingExtraError("ray", "ray"),
    errors.UnsupportedVersionError("transformers", "5.0.0", "5.3"),
    errors.WorkerDiedError("no"),
    errors.BusyError(5),
]


def test_every_kind_has_an_example() -> None:
    assert {type(error).__name__ for error in EXAMPLES} == {*errors.__all__} - {"EdjeError"}


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_crosses_from_process_to_process(error: EdjeError) -> None:
    there = pickle.loads(pickle.dumps(error))
    assert type(there) is type(error)
    assert str(there) == str(error)
    assert vars(there) == vars(error)


@pytest.mark.parametrize("package", LOWEST)
def test_a_version_known_to_fail_is_named_with_the_command_that_helps(package, monkeypatch) -> None:
    UnsupportedVersionError.check(package)
    major, minor = LOWEST[package].split(".")
    found = f"{major}.{int(minor) - 1}.7"
    monkeypatch.setattr(importlib.metadata, "version", lambda name: found)
    message = f"{package} {found} is installed.*pip install '{package}>={LOWEST[package]}'"
    with pytest.raises(ImportError, match=message):
        UnsupportedVersionError.check(package)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: f"{LOWEST[package]}rc1")
    UnsupportedVersionError.check(package)


@pytest.mark.parametrize("package", LOWEST)
def test_bounds_are_those_of_the_project(package: str) -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert re.findall(rf'"{package}>=([0-9.]+)"', text) == [LOWEST[package]]


@pytest.mark.parametrize(
    ("package", "module"),
    [("transformers", "edje_qdrant.encoders"), ("qdrant-client", "edje_qdrant.index")],
)
def test_the_part_that_needs_a_package_checks_its_version(package: str, module: str) -> None:
    code = f"""
import importlib.metadata as metadata
version = metadata.version
metadata.version = lambda name: "1.2.3" if name == {package!r} else version(name)
import edje_qdrant
import edje_qdrant.errors
try:
    import {module}
except edje_qdrant.errors.UnsupportedVersionError as error:
    print(error)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.startswith(f"{package} 1.2.3 is installed")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at http://me:secret@host:6333/p.", "at http://***@host:6333/p."),
        ("http://secret@host", "http://***@host"),
        ("'https://h/p?api_key=secret&x=1'", "'https://h/p?api_key=***&x=1'"),
        ("https://h?x=1&X-Amz-Signature=secret", "https://h?x=1&X-Amz-Signature=***"),
        ("(https://h?API-KEY=secret)", "(https://h?API-KEY=***)"),
        (
            "two http://a:secret@b and http://c?token=secret",
            "two http://***@b and http://c?token=***",
        ),
        ("s3://bucket/photo@2x.png", "s3://bucket/photo@2x.png"),
        ("me@host and a=1&key=2", "me@host and a=1&key=2"),
    ],
)
def test_no_error_shows_a_key_of_an_address(text: str, shown: str) -> None:
    assert errors.without_keys(text) == shown
    for error in (errors.ConfigError(text), errors.StoreError(text)):
        assert str(error) == shown
        assert "secret" not in repr(error)
        assert "secret" not in str(pickle.loads(pickle.dumps(error)))
    unavailable = errors.EngineUnavailableError(text, location=text)
    assert (str(unavailable), unavailable.location) == (shown, shown)
    assert errors.ImageReadError(text, text).reason == shown


def test_no_report_shows_a_key_in_a_reason() -> None:
    failed = FailedImage("http://h/a.png?token=secret", "http://me:secret@h refused it")
    assert failed.reason == "http://***@h refused it"
    assert failed.path == "http://h/a.png?token=secret"  # what to do something about


def test_no_error_repeats_a_long_value() -> None:
    image = 114_000 * "A"
    for error in (
        errors.ConfigError(f"top_k is {image!r}; give a whole number"),
        errors.ImageReadError(image, "File name too long"),
        errors.ConfigError("a query of " + 30_000 * "word "),
    ):
        assert len(str(error)) < 8_000
        assert "characters left out" in str(error)
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
    start, end = str(errors.ImageReadError(image, "File name too long")).split(image[:160])
    assert (start, end[-20:]) == ("cannot read image ", ": File name too long"[-20:])
    path = "/" + 80 * "abc/" + "one.png"
    assert str(errors.ConfigError(path)) == path
