"""Upload of a model to the Hugging Face hub."""

from __future__ import annotations

import tempfile
from fnmatch import fnmatch
from pathlib import Path

import torch

from edje_qdrant.encoders.hub import hub_reason, unreachable
from edje_qdrant.errors import CheckpointError, ConfigError
from edje_qdrant.model.checkpoints.checkpoint import Checkpoint
from edje_qdrant.model.checkpoints.folder import MODEL_FILES, write_checkpoint

__all__ = ["push_checkpoint"]


def push_checkpoint(
    checkpoint: Checkpoint,
    repo_id: str,
    *,
    card: str,
    dtype: torch.dtype | None,
    private: bool | None,
    revision: str | None,
    token: str | bool | None,
    commit_message: str,
    create_pr: bool,
) -> str:
    """Upload a model in one commit, and return the commit's address.

    Files of an earlier model there that this one does not have are deleted; others stay.

    Args:
        checkpoint: The model's parts.
        repo_id: `owner/name`; the repository is created if missing.
        card: Text of `README.md`.
        dtype: Data type of the stored weights; None keeps each tensor's own.
        private: Whether a new repository is private; None for the owner's default.
        revision: Branch, created if missing; `main` by default.
        token: Access token; by default the stored one.
        commit_message: First line of the commit's message.
        create_pr: Whether to open a pull request in place of a commit to the branch.

    Raises:
        CheckpointError: The hub cannot be reached or refuses the upload.
        ConfigError: The id is not valid.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.errors import HFValidationError

    silent = unreachable()
    if silent is not None:
        raise CheckpointError(
            f"cannot upload the model to {repo_id!r}: the hub at {silent}; connect to the network",
            path=repo_id,
        )
    with tempfile.TemporaryDirectory(prefix="edje-push-") as place:
        folder = Path(place)
        write_checkpoint(checkpoint, folder, dtype)
        (folder / "README.md").write_text(card, encoding="utf-8")
        api = HfApi(token=token, library_name="edje-qdrant")
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            if revision is not None and not create_pr:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            written = {
                path.relative_to(folder).as_posix(): path
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            }
            gone = [
                name
                for name in api.list_repo_files(repo_id, revision=None if create_pr else revision)
                if name not in written and any(fnmatch(name, each) for each in MODEL_FILES)
            ]
            # One commit, unlike upload_folder, which may make several: no reader sees half a model.
            commit = api.create_commit(
                repo_id,
                [
                    *(CommitOperationAdd(name, path) for name, path in written.items()),
                    *(CommitOperationDelete(name) for name in gone),
                ],
                commit_message=commit_message,
                revision=revision,
                create_pr=create_pr,
            )
        except HFValidationError as error:
            raise ConfigError(f"repo_id is {repo_id!r}; give owner/name ({error})") from error
        except Exception as error:  # its HTTP client raises errors of its own, not OSError alone
            raise CheckpointError(
                f"cannot upload the model to {repo_id!r} at {api.endpoint}: {hub_reason(error)}; "
                "check the id, the network and that the token may write",
                path=repo_id,
            ) from error
    return str(commit.pr_url or commit.commit_url)
