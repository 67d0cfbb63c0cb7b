from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from edje_qdrant.encoders.weights import HashedModule, hash_weights


class Net(HashedModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)


def test_hash_depends_on_names_shapes_and_values_only() -> None:
    a = {"x": torch.arange(6.0), "y": torch.zeros(2)}
    same = {"y": torch.zeros(2, dtype=torch.float16), "x": torch.arange(6.0).bfloat16()}
    assert hash_weights(a) == hash_weights(same)
    assert hash_weights({"x": torch.arange(6.0).reshape(3, 2).T}) == hash_weights(
        {"x": torch.arange(6.0).reshape(3, 2).T.contiguous()}
    )
    others = [
        {"x": torch.arange(6.0), "z": torch.zeros(2)},
        {"x": torch.arange(6.0).reshape(2, 3), "y": torch.zeros(2)},
        {"x": torch.arange(6.0) + 1e-6, "y": torch.zeros(2)},
        {"x": torch.arange(6.0)},
    ]
    assert hash_weights(a) not in {hash_weights(other) for other in others}


def test_kept_hash_outlives_casts_and_dies_with_the_weights() -> None:
    net = Net()
    first = net.weights_hash
    assert net.half().to("cpu").float().weights_hash == first
    net.keep_weights_hash("kept")
    assert net.double().weights_hash == "kept"
    with torch.no_grad():
        net.layer.weight.mul_(2)
    changed = net.weights_hash
    assert changed not in ("kept", first)
    net.load_state_dict(copy.deepcopy(Net().state_dict()))
    assert net.weights_hash not in ("kept", first, changed)


def test_casting_after_a_change_does_not_revive_the_old_hash() -> None:
    net = Net()
    net.keep_weights_hash("kept")
    with torch.no_grad():
        net.layer.bias.add_(1)
    assert net.half().weights_hash != "kept"


def test_replaced_parameter_is_noticed() -> None:
    net = Net()
    first = net.weights_hash
    net.layer.weight = nn.Parameter(torch.zeros(3, 4))
    assert net.weights_hash != first


def test_weights_made_in_inference_mode_are_hashed() -> None:
    with torch.inference_mode():
        net = Net()
    assert net.weights_hash == hash_weights(net.state_dict())


@pytest.mark.gpu
def test_hash_is_the_same_on_a_gpu() -> None:
    net = Net()
    first = net.weights_hash
    net.to("cuda", torch.bfloat16)
    assert net.weights_hash == first
