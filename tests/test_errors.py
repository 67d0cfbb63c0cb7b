from __future__ import annotations

import pickle

import pytest

from edje_qdrant import errors
from edje_qdrant.errors import EdjeError

EXAMPLES = [
    errors.ConfigError("no"),
    errors.CheckpointError("no", path="/m", missing=["a"], mismatched={"b": ((1,), (2,))}),
    errors.ImageReadError("/a.png", "broken"),
    errors.StoreError("no"),
    errors.CollectionNotFoundError("/photos", "images", ["other"]),
    errors.CollectionLockedError("/photos"),
    errors.TokensNotFoundError("no", ["1"]),
    errors.TokensCorruptError("no", ["1"]),
    errors.ContractMismatchError("no", {"dim": 1}, {"dim": 2}),
    errors.EngineUnavailableError("no", location="http://q"),
    errors.MissingExtraError("ray", "ray"),
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
