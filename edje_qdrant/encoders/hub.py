"""Models on the Hugging Face hub: names with revisions, and downloads that fail fast offline."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from edje_qdrant.errors import CheckpointError, ConfigError
from edje_qdrant.files import kind_of

__all__ = [
    "HubModel",
    "HubOptions",
    "find_model",
    "hub_reason",
    "offline_if_unreachable",
    "unreachable",
]

# Seconds for the hub to answer at all, unless HF_HUB_ETAG_TIMEOUT says otherwise. Without this
# limit an offline machine waits for the retries of huggingface_hub (23 s), or for the system's
# time-out of a connection (minutes).
_ANSWER_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HubOptions:
    """How to load a model from the hub; the names are those of huggingface_hub.

    Attributes:
        revision: Branch, tag or commit; `main` by default.
        cache_dir: Folder for downloads; by default that of huggingface_hub.
        token: Access token; True for the one that `hf auth login` stored, False for none.
        local_files_only: Make no request: use only what was downloaded before.
    """

    revision: str | None = None
    cache_dir: str | Path | None = None
    token: str | bool | None = field(default=None, repr=False)
    local_files_only: bool = False

    def __post_init__(self) -> None:
        """Check the types.

        Raises:
            ConfigError: An option has a wrong type.
        """
        for name, kinds, wanted in (
            ("revision", str, "a branch, a tag or a commit"),
            ("cache_dir", (str, Path), "a folder"),
            ("token", (str, bool), "a token"),
        ):
            value = getattr(self, name)
            if value is not None and not isinstance(value, kinds):
                raise ConfigError(f"{name} is a {type(value).__name__}; give {wanted}")
        if self.revision == "":
            raise ConfigError(
                "revision is empty; give a branch, a tag or a commit, or leave it out"
            )
        if not isinstance(self.local_files_only, bool):
            raise ConfigError(f"local_files_only is {self.local_files_only!r}; give True or False")


@dataclass(frozen=True)
class HubModel:
    """A model on the hub.

    Attributes:
        repo_id: Its id, such as `google/siglip2-base-patch16-256`.
        options: How to load it.
    """

    repo_id: str
    options: HubOptions

    @property
    def name(self) -> str:
        """Return the id, with `@` and the revision if one was asked for."""
        revision = self.options.revision
        return self.repo_id if revision is None else f"{self.repo_id}@{revision}"

    @cached_property
    def unreachable(self) -> str | None:
        """Return why the hub does not answer, within seconds; None if it does or is not asked."""
        return None if self.options.local_files_only else unreachable()

    def sibling(self, repo_id: str) -> HubModel:
        """Return another model, loaded alike from its own main branch."""
        other = HubModel(repo_id, replace(self.options, revision=None))
        other.__dict__["unreachable"] = self.unreachable
        return other

    def arguments(self) -> dict[str, Any]:
        """Return the arguments for huggingface_hub's and transformers' functions.

        A hub that does not answer is not asked: what was downloaded before is used.
        """
        return {
            "revision": self.options.revision,
            "cache_dir": self.options.cache_dir,
            "token": self.options.token,
            "local_files_only": self.options.local_files_only or self.unreachable is not None,
        }

    def download(self, patterns: Sequence[str], *, what: str, instead: str) -> Path:
        """Download the files that match, unless they are in the cache; return their folder.

        Args:
            patterns: Patterns of file names.
            what: Kind of the model, for the message: `model`.
            instead: What else the caller could pass, for the message.

        Raises:
            CheckpointError: The hub does not provide it, or cannot be reached and the cache has no
                copy.
        """
        import huggingface_hub

        try:
            arguments = self.arguments()
            folder = Path(
                huggingface_hub.snapshot_download(
                    self.repo_id, allow_patterns=[*patterns], **arguments
                )
            )
        except Exception as error:  # its HTTP client raises errors of its own, not OSError alone
            raise self.refused(error, what=what, instead=instead) from error
        if not folder.is_dir():  # nothing matched
            raise CheckpointError(
                f"{self.name!r} on the hub is no {what}: it has none of {', '.join(patterns)}; "
                f"{instead}",
                path=self.name,
            )
        return folder

    def refused(self, error: Exception, *, what: str, instead: str) -> CheckpointError:
        """Return the error of a failed download; arguments as for `download`."""
        if self.unreachable is not None:
            why = f"the cache has no copy of it, and the hub at {self.unreachable}"
        elif self.options.local_files_only:
            why = "the cache has no copy of it, and local_files_only allows no download"
        else:
            why = f"the hub does not provide it ({hub_reason(error)})"
        return CheckpointError(
            f"no {what} {self.name!r}: there is no such folder, {why}; {instead}", path=self.name
        )


def find_model(
    name_or_path: str | Path, options: HubOptions, *, what: str, instead: str
) -> Path | HubModel:
    """Return the path that a name stands for if there is one, else the model on the hub.

    Args:
        name_or_path: A path, or a hub id, optionally with a revision: `someone/model@v2`.
        options: How to load a model of the hub.
        what: Kind of the model, for messages: `model`.
        instead: What else the caller could pass, for messages.

    Raises:
        CheckpointError: The name is a path, and there is nothing.
        ConfigError: A folder is given with a revision, or two revisions are given.
    """
    if not isinstance(name_or_path, str | Path) or not str(name_or_path):
        raise ConfigError(f"the name of a {what} is {name_or_path!r}; {instead}")
    path = Path(name_or_path).expanduser()
    if kind_of(path, CheckpointError) is not None:
        if options.revision is not None:
            raise ConfigError(
                f"revision is {options.revision!r}, but {path} is on this machine, where a {what} "
                "has no revisions; leave it out, or pass a hub id"
            )
        return path
    if _is_path(name_or_path):
        raise CheckpointError(
            f"there is no folder {Path(os.path.abspath(path))}; check the path, or {instead}",
            path=str(path),
        )
    repo_id, at, revision = str(name_or_path).partition("@")
    if at and options.revision not in (None, revision):
        raise ConfigError(
            f"{name_or_path!r} names the revision {revision!r}, and revision is "
            f"{options.revision!r}; give one of them"
        )
    return HubModel(repo_id, replace(options, revision=revision) if at else options)


@contextmanager
def offline_if_unreachable(asks: bool) -> Iterator[None]:
    """Put huggingface_hub into its offline mode if the hub does not answer.

    For packages that download by themselves, and whose functions cannot be told to make no request.

    Args:
        asks: Whether the block asks the hub at all.
    """
    from huggingface_hub import constants

    if not asks or constants.HF_HUB_OFFLINE or unreachable() is None:
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False


def hub_reason(error: Exception) -> str:
    """Return in one line why the hub refused a request, without its request ids and addresses."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # why the hub was given up for the cache
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if isinstance(error, errors.RevisionNotFoundError):
        return "it has no such revision"
    if isinstance(error, errors.GatedRepoError):
        return "access to it must be requested on its page, and a token sent: token= or HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "it does not exist, or it is private: give token= or set HF_TOKEN"
    if status in (401, 403):
        return f"the token is missing or may not do this, status {status}: token= or HF_TOKEN"
    if status is not None:
        return f"it answered with status {status}"
    return " ".join(str(error).split()) or type(error).__name__


def _is_path(name: str | Path) -> bool:
    """Return whether a name cannot be a hub id, which is `name` or `owner/name`."""
    if isinstance(name, Path) or Path(name).is_absolute():
        return True
    parts = name.partition("@")[0].split("/")
    return name.startswith((".", "~")) or "\\" in name or len(parts) > 2 or not all(parts)


def unreachable() -> str | None:
    """Return the hub's address and why it does not answer, within seconds; None if it does."""
    from huggingface_hub import constants, get_session

    given = os.environ.get("HF_HUB_ETAG_TIMEOUT")
    seconds = float(constants.HF_HUB_ETAG_TIMEOUT) if given else _ANSWER_SECONDS
    failed: list[str] = []

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=seconds, follow_redirects=False)
        except Exception as error:  # of the HTTP client, whose package differs by version
            failed.append(" ".join(str(error).split()) or type(error).__name__)

    # In a thread, as looking up a name has no time limit.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(seconds)
    if asking.is_alive():
        failed.append(f"no answer within {seconds:g} s; on a slow line raise HF_HUB_ETAG_TIMEOUT")
    return f"{constants.ENDPOINT} cannot be reached ({failed[0]})" if failed else None
