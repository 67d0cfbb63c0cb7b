"""Measure how well heat maps locate objects in held-out demo scenes, whose positions are known.

    python benchmarks/heat_maps.py --out docs/results/heat_maps.json \
        --image docs/results/heat_map.png

Each scene is explained for one phrase ("a red star") that names one of its two to four objects. The
first scenes are explained for a caption as well, and each of its words is measured against the
object that it describes. Measured are:

share      Share of the heat inside the boxes of the named objects.
area       Share of the image inside these boxes: the expected `share` of uniform heat.
points     How often the center of the hottest patch is inside one of the boxes.
ahead      How often each named object has more heat than every other object.

Simpler methods are compared with `explain_match` on the same phrases.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from edje_qdrant import EDJEModel, draw_explanation, explain_match
from edje_qdrant.demo.captions import describe
from edje_qdrant.demo.drawing import draw
from edje_qdrant.demo.planted import Aim, aim, mentioned, phrase, unmistakable, word_objects
from edje_qdrant.demo.scenes import draw_scenes
from edje_qdrant.explain.integrated_gradients import gradients

SEED = 1  # the demo's
EXAMPLE = "a red heart left of a big black star"


def main() -> None:
    """Measure, print a table, and write the requested files."""
    options = _options()
    torch.set_num_threads(1)
    began = time.process_time()
    model = EDJEModel.from_pretrained("demo", device="cpu")
    others = OtherWays()
    rng = np.random.default_rng(SEED)
    found: dict[tuple[str, str], list[Aim]] = defaultdict(list)
    weights: dict[str, list[float]] = defaultdict(list)
    source = (scene for scene in draw_scenes("test", SEED) if unmistakable(scene))
    for number in range(options.scenes):
        scene = next(source)
        image, item = draw(scene), scene.objects[rng.integers(len(scene.objects))]
        explanation = explain_match(model, phrase(item), image)
        found["phrase", "explain_match"].append(aim(explanation.heat, scene, [item]))
        for name, heat in others.heats(phrase(item), image, explanation.tokens).items():
            found["phrase", name].append(aim(heat, scene, [item]))
        if number >= options.captions:
            continue
        caption = describe(scene, rng)
        explanation = explain_match(model, caption.text, image)
        named = mentioned(caption, scene)
        found["caption", "explain_match"].append(aim(explanation.heat, scene, named))
        kinds = dict.fromkeys(range(len(explanation.words)), "other")
        for word, kind, item in word_objects(caption, scene, explanation.words):
            found[f"{kind} word", "explain_match"].append(
                aim(explanation.word_heat[word], scene, [item])
            )
            kinds[word] = kind
        for word, kind in kinds.items():
            weights[kind].append(float(explanation.word_weights[word]))
    report = {
        "what": "heat of explain_match on held-out demo scenes, against the planted objects",
        "scenes": options.scenes,
        "captions": options.captions,
        "rows": [_row(asked, way, aims) for (asked, way), aims in found.items()],
        "mean_word_weights": {kind: round(float(np.mean(w)), 2) for kind, w in weights.items()},
        "cpu_seconds": round(time.process_time() - began),
        "command": "python benchmarks/heat_maps.py "
        f"--scenes {options.scenes} --captions {options.captions}",
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": f"{platform.machine()}, {platform.system()}, 1 thread, CPU",
    }
    for row in report["rows"]:
        print(
            f"{row['asked']:<12} {row['way']:<34} n={row['n']:<4} share {row['share']:.3f} "
            f"(even {row['area']:.3f})  points {row['points']:.3f}  ahead {row['ahead']:.3f}"
        )
    print("mean weights of words, nats:", report["mean_word_weights"])
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if options.image:
        _draw_example(model, options.image)


class OtherWays:
    """Compute heat maps with simpler methods, for comparison."""

    def __init__(self) -> None:
        self._model = EDJEModel.from_pretrained("demo", device="cpu")
        language_model = self._model.joint_encoder.language_model
        # Other implementations do not return attention.
        language_model.set_attn_implementation("eager")
        self._attention: list[torch.Tensor] = []
        language_model.bert.encoder.layer[-1].attention.self.register_forward_hook(
            lambda _module, _inputs, output: self._attention.append(output[1])
        )

    def heats(self, text: str, image: Image.Image, by_token: np.ndarray) -> dict[str, np.ndarray]:
        """Return method -> `(h, w)` heat.

        Args:
            text: Phrase to explain.
            image: Image to explain.
            by_token: `(m,)` relevance of tokens, from `explain_match`.
        """
        model, ids = self._model, self._model.tokenize([text])
        with gradients(model):
            vision_tokens = model.encoder.encode_pixels(model.preprocess([image]))[1].detach()
            looks = model.adapter.attention_weights(vision_tokens)[0]  # (m, n)
            tokens = model.adapter(vision_tokens).detach().requires_grad_()  # (1, m, d)
            m = tokens.shape[1]
            self._attention.clear()
            logit = model.joint_encoder(*ids, tokens)
            last = self._attention[0].mean(1)[0, 0, ids[0].shape[1] :][:m]  # of [CLS] to each token
            (gradient,) = torch.autograd.grad(logit.sum(), tokens)
            product = (gradient * tokens)[0].sum(-1).clamp_min(0)
            without = tokens.detach().expand(m, -1, -1).clone()
            without[range(m), range(m)] = tokens[0].mean(0)
            drops = logit - model.joint_encoder(*(i.expand(m, -1) for i in ids), without)
        ways = {
            "the adapter's attention alone": torch.ones(m),
            "gradient x token": product,
            "gradient's length": gradient[0].norm(dim=-1),
            "hiding each token": drops.clamp_min(0),
            "last layer's attention": last,
            "integrated gradients of tokens": torch.from_numpy(by_token).clamp_min(0),
        }
        grid = model.encoder.patch_grid
        return {
            name: (w.detach() @ looks).detach().numpy().reshape(grid) for name, w in ways.items()
        }


def _row(asked: str, way: str, aims: Sequence[Aim]) -> dict[str, Any]:
    means = {
        field: round(float(np.mean([getattr(a, field) for a in aims])), 3)
        for field in ("share", "area", "points", "ahead")
    }
    return {"asked": asked, "way": way, "n": len(aims), **means}


def _draw_example(model: EDJEModel, path: Path) -> None:
    """Draw the explanation of the fifth demo scene."""
    *_, scene = draw_scenes("test", SEED, 5)
    image = draw(scene)
    sheet = draw_explanation(image, explain_match(model, EXAMPLE, image))
    sheet.save(path, optimize=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scenes", type=int, default=400, help="scenes to explain for a phrase")
    parser.add_argument(
        "--captions", type=int, default=120, help="scenes to explain for a caption as well"
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--image", "--picture", type=Path, help="PNG of one explanation to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
