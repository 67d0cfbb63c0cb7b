"""Whatever happens to a file's bytes, a search never says what it would not have said before."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from proof_server import Server
from proof_world import draw_images

AT_A_TIME, DEFAULT, ALL = 10, 20, 1000


@pytest.fixture(scope="module")
def templates(server: Server, root: Path) -> tuple[Path, Any]:
    ours, others = (
        [str(path) for path in draw_images(root / "pictures", 12, seed)] for seed in (0, 1)
    )
    for seed, name in enumerate(("book", "other-book")):
        path = str(root / f"{name}.safetensors")
        server.ask("proof_world:write_codebook", path=path, seed=seed)
    states = server.ask("proof_breaking:make_templates", root=str(root), ours=ours, others=others)
    assert {name: state["codecs"][0].partition("-")[0] for name, state in states.items()} == {
        "plain": "float16", "pq": "pq16", "mixed": "pq16", "books": "pq16", "payload": "pq16",
    }  # fmt: skip
    assert states["pq"]["rankings"] == states["payload"]["rankings"]
    assert states["pq"]["rankings"] != states["plain"]["rankings"]
    assert len({r["segment"] for r in states["plain"]["references"].values()}) > 2
    return root, states


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(n, marks=[pytest.mark.slow] if n >= DEFAULT else [])
        for n in range(0, ALL, AT_A_TIME)
    ],
)
def test_damage_is_noticed_or_does_no_harm(
    server: Server, templates: tuple[Path, Any], scratch: Path, tally: Counter[str], first: int
) -> None:
    root, states = templates
    done = server.ask(
        "proof_breaking:damage_cases",
        root=str(root),
        scratch=str(scratch),
        states=states,
        seeds=[*range(first, first + AT_A_TIME)],
    )
    assert len(done) == AT_A_TIME
    for target, _kind, came, mended in done:
        tally["damages, in all"] += 1
        tally[f"damaged {target}: {came.removeprefix('while open: ')}"] += 1
        tally[f"damaged {target}, after repair: {mended}"] += 1
