from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from joint_pairs import captions, plain
from rounding import float32_slack
from tiny import SEP, bert_config
from torch import Tensor
from transformers import BertForMaskedLM

from edje_qdrant.errors import ConfigError
from edje_qdrant.model import FastJointEncoder, JointEncoder, Precision
from edje_qdrant.model.inference import packed_linear
from edje_qdrant.model.inference.packed_linear import has_int8_kernels
from edje_qdrant.model.inference.precision import choose_precision

M, WIDTH = 3, 36
HALF = [
    pytest.param("bfloat16", id="bfloat16"),
    pytest.param(
        "int8",
        id="int8",
        marks=pytest.mark.skipif(not has_int8_kernels(), reason="no 8-bit dot products here"),
    ),
]


def build(**changes: object) -> JointEncoder:
    torch.manual_seed(0)
    language_model = BertForMaskedLM(bert_config(initializer_range=0.3, **changes))
    encoder = JointEncoder(language_model, sep_token_id=SEP, embedding_dim=8).eval()
    with torch.no_grad():
        encoder.pooler.weight.normal_(std=0.3)
        encoder.classifier.weight.normal_()
    return encoder


@pytest.fixture
def joint_encoder() -> JointEncoder:
    return build()


def assert_same_scores(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=float32_slack(expected), rtol=0)


@pytest.mark.parametrize(
    "shapes", [[(1, 1)], [(32, 4)], [(33, 9)], [(80, 3)], [(3, 2), (5, 4), (60, 7)]]
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_it_scores_as_the_training_form_does(
    joint_encoder: JointEncoder, shapes: list[tuple[int, int]], dtype: torch.dtype
) -> None:
    groups = [captions(n, length) for n, length in shapes]
    tokens = torch.randn(sum(n for n, _ in shapes), M, WIDTH).to(dtype)
    found = FastJointEncoder(joint_encoder)(groups, tokens)
    assert_same_scores(found, plain(joint_encoder, groups, tokens))
    assert len(found) == 1 or found.std() > 0.05  # or any order would pass


@pytest.mark.parametrize("changes", [{"hidden_act": "gelu_new"}, {"num_hidden_layers": 1}])
def test_other_settings_of_bert_are_followed(changes: dict[str, object]) -> None:
    joint_encoder, groups, tokens = build(**changes), [captions(9, 4)], torch.randn(9, M, WIDTH)
    expected = plain(joint_encoder, groups, tokens)
    found = FastJointEncoder(joint_encoder)(groups, tokens)
    assert_same_scores(found, expected)
    if has_int8_kernels():
        found = FastJointEncoder(joint_encoder, "int8")(groups, tokens)
        assert correlation(found, expected) > 0.99


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.float(), b.float()]))[0, 1])


@pytest.mark.parametrize("precision", HALF)
def test_fewer_bits_keep_what_the_scores_say(
    joint_encoder: JointEncoder, precision: Precision
) -> None:
    groups, tokens = [captions(20, 3), captions(30, 8)], torch.randn(50, M, WIDTH)
    found = FastJointEncoder(joint_encoder, precision)(groups, tokens)
    expected = plain(joint_encoder, groups, tokens)
    assert not torch.equal(found, expected)  # it is another precision indeed
    assert correlation(found, expected) > 0.995


@pytest.mark.parametrize("precision", ["float32", *HALF])
@pytest.mark.parametrize(
    "change",
    [
        lambda e: e.classifier.weight.data.neg_(),
        lambda e: e.load_state_dict(build_other().state_dict()),
        lambda e: e.language_model.bert.encoder.layer[0].output.dense.weight.mul_(-2),
        lambda e: e.language_model.bert.encoder.layer[-1].output.LayerNorm.bias.add_(1),
        lambda e: e.language_model.bert.embeddings.token_type_embeddings.weight.normal_(),
        lambda e: setattr(
            e.language_model.bert.encoder.layer[0].attention.self.value.weight,
            "data",
            torch.ones(WIDTH, WIDTH) / 9,
        ),
    ],
    ids=["classifier", "loaded", "in place", "last norm", "embeddings", "replaced"],
)
def test_weights_that_change_are_followed(
    joint_encoder: JointEncoder, precision: Precision, change: Callable[[JointEncoder], None]
) -> None:
    fast = FastJointEncoder(joint_encoder, precision)
    groups, tokens = [captions(12, 4)], torch.randn(12, M, WIDTH)
    before = fast(groups, tokens)
    with torch.no_grad():
        change(joint_encoder)
    after = fast(groups, tokens)
    assert (after - before).abs().max() > 0.05
    torch.testing.assert_close(after, FastJointEncoder(joint_encoder, precision)(groups, tokens))


def build_other() -> JointEncoder:
    other = build()
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.3)
    return other


def test_weights_that_stay_are_laid_out_once(
    joint_encoder: JointEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = FastJointEncoder(joint_encoder)
    fast([captions(2, 2)], torch.randn(2, M, WIDTH))
    packed = fast._packed
    joint_encoder.train()
    fast([captions(2, 3)], torch.randn(2, M, WIDTH))
    assert fast._packed is packed
    assert joint_encoder.training


def test_weights_are_looked_at_without_a_walk_through_the_modules(
    joint_encoder: JointEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = FastJointEncoder(joint_encoder)
    groups, tokens = [captions(2, 2)], torch.randn(2, M, WIDTH)
    expected = fast(groups, tokens)
    for name in ("named_modules", "_named_members", "named_children"):
        monkeypatch.delattr(torch.nn.Module, name)
    torch.testing.assert_close(fast(groups, tokens), expected)


def test_training_after_inference_reaches_every_weight(joint_encoder: JointEncoder) -> None:
    groups, tokens = [captions(4, 4)], torch.randn(4, M, WIDTH)
    FastJointEncoder(joint_encoder)(groups, tokens)
    joint_encoder(groups[0], torch.ones_like(groups[0]), tokens).sum().backward()
    used = [*joint_encoder.language_model.bert.parameters(), *joint_encoder.classifier.parameters()]
    assert all(weight.grad is not None for weight in used)


def test_long_captions_lose_their_end_and_keep_the_separator(joint_encoder: JointEncoder) -> None:
    joint_encoder.max_caption_length = 10
    long, tokens = captions(3, 30), torch.randn(3, M, WIDTH)
    kept, fast = long.clone(), FastJointEncoder(joint_encoder)
    assert_same_scores(fast([long], tokens), plain(joint_encoder, [long], tokens))
    assert torch.equal(long, kept)


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("shift", [200.0, -80.0, -200.0])
def test_attention_beyond_the_range_of_exponents_is_computed_with_care(
    joint_encoder: JointEncoder, precision: Precision, shift: float
) -> None:
    # A query that all keys meet alike: each row's exponents are shifted by the same large number,
    # which changes no attention, but leaves what bfloat16 can hold.
    plain_fast = FastJointEncoder(copy.deepcopy(joint_encoder), precision)
    attention = joint_encoder.language_model.bert.encoder.layer[0].attention.self
    width = WIDTH // joint_encoder.language_model.config.num_attention_heads
    with torch.no_grad():
        for part, value in ((attention.query, shift * width**0.5), (attention.key, 1.0)):
            part.weight[::width] = 0
            part.bias[::width] = value
        for part in (attention.query, attention.key):
            part.weight[1::width] /= 4
    groups, tokens = [captions(12, 4)], torch.randn(12, M, WIDTH)
    found = FastJointEncoder(joint_encoder, precision)(groups, tokens)
    assert found.isfinite().all()
    assert correlation(found, plain(joint_encoder, groups, tokens)) > 0.9
    assert plain_fast(groups, tokens).isfinite().all()


@pytest.mark.parametrize("precision", ["float32", *HALF])
def test_tokens_that_are_no_numbers_give_none(
    joint_encoder: JointEncoder, precision: Precision
) -> None:
    tokens = torch.randn(3, M, WIDTH)
    tokens[1, 0, 0] = torch.nan
    assert FastJointEncoder(joint_encoder, precision)([captions(3, 4)], tokens)[1].isnan()


def test_kernels_that_are_missing_are_done_without(
    joint_encoder: JointEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups, tokens = [captions(9, 4)], torch.randn(9, M, WIDTH)
    expected = plain(joint_encoder, groups, tokens)
    monkeypatch.setattr(packed_linear, "_known", dict.fromkeys(["float32", "bfloat16"], False))
    found = FastJointEncoder(joint_encoder)(groups, tokens)
    assert_same_scores(found, expected)
    half = FastJointEncoder(joint_encoder, "bfloat16")(groups, tokens)
    assert correlation(half, expected) > 0.995
    assert choose_precision(10_000, torch.float32, torch.device("cpu")) == "float32"
    monkeypatch.setitem(packed_linear._known, "int8", False)
    with pytest.raises(ConfigError, match="8-bit"):
        FastJointEncoder(joint_encoder, "int8")


def test_a_kernel_that_computes_something_else_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packed_linear, "_known", {})
    monkeypatch.setattr(packed_linear._Packed, "__call__", lambda self, x, **more: x)
    assert not packed_linear.has_packed_kernels(torch.float32)


def test_precisions_that_the_device_lacks_are_refused(joint_encoder: JointEncoder) -> None:
    with pytest.raises(ConfigError, match="float16"):
        FastJointEncoder(joint_encoder, "float16")


@pytest.mark.gpu
@pytest.mark.parametrize("n", [1, 5, 8, 200, 300])
def test_it_scores_in_float32_on_a_gpu_as_the_training_form_does(
    joint_encoder: JointEncoder, n: int
) -> None:
    joint_encoder.cuda()
    fast = FastJointEncoder(joint_encoder, "float32")
    for _ in range(4):  # met, recorded, replayed twice
        groups, tokens = [captions(n, 4).cuda()], torch.randn(n, M, WIDTH, device="cuda")
        expected = plain(joint_encoder, groups, tokens)
        torch.testing.assert_close(fast(groups, tokens), expected, atol=1e-3, rtol=0)
    with torch.no_grad():
        joint_encoder.classifier.weight.mul_(-1)
    torch.testing.assert_close(
        fast(groups, tokens), plain(joint_encoder, groups, tokens), atol=1e-3, rtol=0
    )
    mixed = [captions(2, 3).cuda(), captions(3, 5).cuda()]
    tokens = torch.randn(5, M, WIDTH, device="cuda")
    torch.testing.assert_close(
        fast(mixed, tokens), plain(joint_encoder, mixed, tokens), atol=1e-3, rtol=0
    )
