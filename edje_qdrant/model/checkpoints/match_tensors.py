"""Match a checkpoint's tensors to a module's, and report every one that does not fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from edje_qdrant.errors import CheckpointError

__all__ = ["fill", "match_tensors", "needed_keys"]

# The masked-language-model head's output layer shares weight and bias with other parameters.
_TIED = ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias")


def needed_keys(module: nn.Module) -> list[str]:
    """Return the keys of the module's state that a checkpoint must hold, without tied copies."""
    return [key for key in module.state_dict() if not key.endswith(_TIED)]


def match_tensors(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    path: str,
    name_of: Callable[[str], str] = lambda key: key,
) -> dict[str, Tensor]:
    """Return the tensors that the module needs, by the module's keys; others are ignored.

    Args:
        module: The module to load into.
        state: The checkpoint.
        path: The checkpoint's path, for the error.
        name_of: Maps a key of the module to its name in the checkpoint.

    Raises:
        CheckpointError: A tensor is missing or has another shape; lists each with both shapes.
    """
    own = module.state_dict()
    names = {key: name_of(key) for key in needed_keys(module)}
    missing = [name for name in names.values() if name not in state]
    mismatched = {
        name: (tuple(own[key].shape), tuple(state[name].shape))
        for key, name in names.items()
        if name in state and own[key].shape != state[name].shape
    }
    if missing or mismatched:
        parts = []
        if missing:
            parts.append(f"lacks {len(missing)} tensors ({_listed(missing)})")
        if mismatched:
            shapes = [f"{k} is {found}, not {need}" for k, (need, found) in mismatched.items()]
            parts.append(f"has {len(shapes)} of another shape ({_listed(shapes)})")
        raise CheckpointError(
            f"the checkpoint {path} {' and '.join(parts)}; check that it is whole, and that the "
            "encoder and the language model named with it are those it was trained with",
            path=path,
            missing=missing,
            mismatched=mismatched,
        )
    return {key: state[name] for key, name in names.items()}


def fill(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    path: str,
    name_of: Callable[[str], str] = lambda key: key,
) -> None:
    """Load every tensor the module needs from a checkpoint; arguments as for `match_tensors`.

    Raises:
        CheckpointError: A tensor is missing or has another shape.
    """
    matched = match_tensors(module, state, path=path, name_of=name_of)
    module.load_state_dict(matched, strict=False)  # not strict: tied copies are not in `matched`


def _listed(items: list[str]) -> str:
    return ", ".join(items[:5]) + (", ..." if len(items) > 5 else "")
