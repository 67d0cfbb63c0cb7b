"""What a collection's metadata says of a migration to another model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from edje_qdrant.contract import TokenContract
from edje_qdrant.errors import StoreError

__all__ = [
    "MOVED_FORMAT",
    "Migration",
    "MigrationState",
    "Moved",
    "MovedState",
    "is_closing",
    "moved_to",
    "read_moved",
]

#: Format of the metadata of a side that another one has replaced. Versions that know no migrations
#: refuse it, so that none of them searches a side with the wrong model.
MOVED_FORMAT = 2

#: States of a migration before its cut-over.
MigrationState = Literal["encoding", "closing", "removing"]

#: `settling`: other processes may still search the old side. `kept`: it can be gone back to.
#: `dropping`: its images are being deleted. `dropped`: it is empty, and says where the images are.
MovedState = Literal["settling", "kept", "dropping", "dropped"]

_STATES: tuple[MovedState, ...] = get_args(MovedState)


@dataclass(frozen=True, slots=True)
class Migration:
    """Name the side that a migration under way fills; in the record of the side that is searched.

    Attributes:
        to: Name of the side that is filled.
        contract: Of the model that fills it, codec included.
        state: `encoding`; `closing` while a cut-over keeps other processes from writing with the
            old model; `removing` while the new side is deleted.
    """

    to: str
    contract: TokenContract
    state: MigrationState = "encoding"

    def as_dict(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {"to": self.to, "contract": self.contract.as_dict(), "state": self.state}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Migration:
        """Parse it.

        Raises:
            KeyError: Something is missing.
            ValueError: The state is unknown.
            StoreError: The contract cannot be read.
        """
        contract, state = TokenContract.from_dict(data["contract"]), data["state"]
        if state not in get_args(MigrationState):
            raise ValueError(f"unknown state {state!r}")
        return cls(str(data["to"]), contract, state)


@dataclass(frozen=True, slots=True)
class Moved:
    """Say which side has replaced another one; the metadata of that other one.

    Attributes:
        to: Name of the side that is searched now.
        contract: Of its model, codec included.
        state: What has become of the old side.
        before: The old side's metadata before it was replaced; empty once it is dropped.
        leftover: Name of another side that is being deleted with it.
    """

    to: str
    contract: TokenContract
    state: MovedState
    before: Mapping[str, Any]
    leftover: str | None = None

    def as_metadata(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {
            "format": MOVED_FORMAT,
            "contract": self.contract.as_dict(),
            "moved_to": self.to,
            "state": self.state,
            "before": dict(self.before),
            "leftover": self.leftover,
        }


def moved_to(metadata: Mapping[str, Any]) -> str | None:
    """Return the name of the side that has replaced the one with this metadata; None if none."""
    to = metadata.get("moved_to")
    return str(to) if metadata.get("format") == MOVED_FORMAT and to else None


def read_moved(metadata: Mapping[str, Any], what: str) -> Moved:
    """Read the metadata of a side that another one has replaced; messages call it `what`.

    Raises:
        StoreError: No side has replaced it, or the metadata is damaged.
    """
    to, before = moved_to(metadata), metadata.get("before")
    state = next((s for s in _STATES if s == metadata.get("state")), None)
    if to is None or state is None or not isinstance(before, Mapping):
        raise StoreError(
            f"collection {what} does not say where its images are; restore its metadata from a copy"
        )
    contract, leftover = TokenContract.from_dict(metadata["contract"]), metadata.get("leftover")
    return Moved(to, contract, state, before, leftover)


def is_closing(metadata: Mapping[str, Any]) -> bool:
    """Return whether a cut-over keeps other processes from writing."""
    migration = metadata.get("migration")
    return isinstance(migration, Mapping) and migration.get("state") == "closing"
