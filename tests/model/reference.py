"""EDJE written out plainly on the published state dict: one image, one caption, no padding."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

State = dict[str, Tensor]


@dataclass(frozen=True)
class Sizes:
    """Hold what tensors' shapes do not tell."""

    vision_heads: int
    text_heads: int
    bert_heads: int
    patch_size: int
    vision_prefix: str  # "vision_encoder." or "vision_encoder.vision_model."
    siglip_eps: float = 1e-6
    bert_eps: float = 1e-12


def linear(s: State, name: str, x: Tensor) -> Tensor:
    return x @ s[name + ".weight"].T + s[name + ".bias"]


def norm(s: State, name: str, x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + eps)
    return scaled * s[name + ".weight"] + s[name + ".bias"]


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    width = q.shape[-1] // heads
    out = []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        weights = torch.softmax(q[:, part] @ k[:, part].T / math.sqrt(width), dim=-1)
        out.append(weights @ v[:, part])
    return torch.cat(out, dim=-1)


def packed_attention(s: State, name: str, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Do what torch's MultiheadAttention does, with its packed in-projection."""
    wq, wk, wv = s[name + ".in_proj_weight"].chunk(3)
    bq, bk, bv = s[name + ".in_proj_bias"].chunk(3)
    return linear(s, name + ".out_proj", attend(q @ wq.T + bq, k @ wk.T + bk, v @ wv.T + bv, heads))


def siglip_layers(s: State, prefix: str, x: Tensor, heads: int, eps: float) -> Tensor:
    i = 0
    while f"{prefix}encoder.layers.{i}.layer_norm1.weight" in s:
        p = f"{prefix}encoder.layers.{i}."
        y = norm(s, p + "layer_norm1", x, eps)
        q, k, v = (linear(s, f"{p}self_attn.{n}_proj", y) for n in "qkv")
        x = x + linear(s, p + "self_attn.out_proj", attend(q, k, v, heads))
        y = norm(s, p + "layer_norm2", x, eps)
        y = F.gelu(linear(s, p + "mlp.fc1", y), approximate="tanh")
        x = x + linear(s, p + "mlp.fc2", y)
        i += 1
    return x


def vision_tower(s: State, prefix: str, pixels: Tensor, z: Sizes) -> Tensor:
    """Turn `(3, H, W)` into the last hidden state `(n, d_v)`."""
    p = prefix + "embeddings."
    x = F.conv2d(
        pixels[None], s[p + "patch_embedding.weight"], s[p + "patch_embedding.bias"],
        stride=z.patch_size,
    )  # fmt: skip
    x = x[0].flatten(1).T + s[p + "position_embedding.weight"]
    x = siglip_layers(s, prefix, x, z.vision_heads, z.siglip_eps)
    return norm(s, prefix + "post_layernorm", x, z.siglip_eps)


def image_embedding(s: State, pixels: Tensor, z: Sizes) -> Tensor:
    x = vision_tower(s, "clip.vision_model.", pixels, z)
    p = "clip.vision_model.head."
    y = packed_attention(s, p + "attention", s[p + "probe"][0], x, x, z.vision_heads)
    hidden = norm(s, p + "layernorm", y, z.siglip_eps)
    hidden = F.gelu(linear(s, p + "mlp.fc1", hidden), approximate="tanh")
    y = y + linear(s, p + "mlp.fc2", hidden)
    return y[0] / y[0].norm()


def text_embedding(s: State, padded_ids: Tensor, z: Sizes) -> Tensor:
    p = "clip.text_model."
    x = s[p + "embeddings.token_embedding.weight"][padded_ids]
    x = x + s[p + "embeddings.position_embedding.weight"][: len(x)]
    x = siglip_layers(s, p, x, z.text_heads, z.siglip_eps)
    y = linear(s, p + "head", norm(s, p + "final_layer_norm", x, z.siglip_eps)[-1])
    return y / y.norm()


def tokens(s: State, pixels: Tensor, z: Sizes) -> Tensor:
    """Turn `(3, H, W)` into the tokens `(m, d_text)`."""
    x = vision_tower(s, z.vision_prefix, pixels, z)
    p = "vision_projection."
    if p + "0.weight" in s:
        return linear(s, p + "2", F.gelu(linear(s, p + "0", x)))
    y = packed_attention(
        s, p + "attention", s[p + "query"][0], linear(s, p + "key", x), linear(s, p + "value", x),
        z.vision_heads,
    )  # fmt: skip
    hidden = F.gelu(linear(s, p + "mlp.fc1", norm(s, p + "layernorm", y, z.siglip_eps)))
    y = y + linear(s, p + "mlp.fc2", hidden)
    return linear(s, p + "projection", y)


def bert(s: State, x: Tensor, types: Tensor, z: Sizes) -> Tensor:
    p = "language_model.bert.embeddings."
    positions = s[p + "position_embeddings.weight"]
    if len(x) > len(positions):
        positions = torch.cat([positions, positions[-1:].repeat(len(x) - len(positions), 1)])
    x = x + positions[: len(x)] + s[p + "token_type_embeddings.weight"][types]
    x = norm(s, p + "LayerNorm", x, z.bert_eps)
    i = 0
    while f"language_model.bert.encoder.layer.{i}.output.dense.weight" in s:
        p = f"language_model.bert.encoder.layer.{i}."
        q, k, v = (linear(s, f"{p}attention.self.{n}", x) for n in ("query", "key", "value"))
        y = linear(s, p + "attention.output.dense", attend(q, k, v, z.bert_heads))
        x = norm(s, p + "attention.output.LayerNorm", x + y, z.bert_eps)
        y = linear(s, p + "output.dense", F.gelu(linear(s, p + "intermediate.dense", x)))
        x = norm(s, p + "output.LayerNorm", x + y, z.bert_eps)
        i += 1
    return x


def pair_states(
    s: State, word_pieces: list[int], cls: int, sep: int, picture: Tensor, z: Sizes
) -> Tensor:
    """Run `[CLS] caption [SEP] tokens [SEP]`, the caption cut to 61 word pieces."""
    caption = [cls, *word_pieces[:61], sep]
    words = s["language_model.bert.embeddings.word_embeddings.weight"]
    x = torch.cat([words[caption], picture, words[[sep]]])
    types = torch.tensor([0] * len(caption) + [1] * (len(picture) + 1))
    return bert(s, x, types, z)


def score(s: State, word_pieces: list[int], cls: int, sep: int, picture: Tensor, z: Sizes) -> float:
    first = pair_states(s, word_pieces, cls, sep, picture, z)[0]
    pooled = torch.tanh(linear(s, "classification_head.0.dense", first))
    return float(linear(s, "classification_head.1", pooled)[0])


def word_logits(
    s: State, word_pieces: list[int], cls: int, sep: int, picture: Tensor, z: Sizes
) -> Tensor:
    """Return the masked-word head's logits at the caption's places."""
    x = pair_states(s, word_pieces, cls, sep, picture, z)[: len(word_pieces[:61]) + 2]
    p = "language_model.cls.predictions."
    x = norm(s, p + "transform.LayerNorm", F.gelu(linear(s, p + "transform.dense", x)), z.bert_eps)
    return x @ s["language_model.bert.embeddings.word_embeddings.weight"].T + s[p + "bias"]


def caption_features(s: State, word_pieces: list[int], cls: int, sep: int, z: Sizes) -> Tensor:
    caption = [cls, *word_pieces[:61], sep]
    x = s["language_model.bert.embeddings.word_embeddings.weight"][caption]
    first = bert(s, x, torch.zeros(len(caption), dtype=torch.long), z)[0]
    return linear(s, "text_projection", first)
