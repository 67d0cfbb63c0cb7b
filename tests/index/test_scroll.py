"""Every point once, in pages, alike on every engine."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from index_engines import Engine, image_id, make_points, unit_vectors
from rounding import DOT, float32_slack

from edje_qdrant.errors import ConfigError, StoreError
from edje_qdrant.index import VectorIndex
from edje_qdrant.types import Point


def filled(engine: Engine, count: int) -> VectorIndex:
    index = engine.create()
    index.upsert(make_points(unit_vectors(count)))
    return index


def ids(pages: Iterable[list[Point]]) -> list[str]:
    return [point.id for page in pages for point in page]


def in_order(numbers: Iterable[int]) -> list[str]:
    return sorted(image_id(n) for n in numbers)


@pytest.mark.parametrize("batch_size", [1, 7, 25, 50, 51, 1000])
def test_every_point_once_in_order_of_id(engine: Engine, batch_size: int) -> None:
    index = filled(engine, 50)
    pages = [*index.scroll(batch_size=batch_size)]
    assert ids(pages) == in_order(range(50))
    assert [len(page) for page in pages[:-1]] == [batch_size] * (len(pages) - 1)
    assert 0 < len(pages[-1]) <= batch_size


def test_nothing_to_scroll(engine: Engine) -> None:
    index = engine.create()
    assert [*index.scroll()] == []
    index.upsert(make_points(unit_vectors(5)))
    assert [*index.scroll(filter={"album": "none"})] == []
    index.delete([image_id(n) for n in range(5)])
    assert [*index.scroll()] == []


def test_what_points_come_with(engine: Engine) -> None:
    index = filled(engine, 20)
    written = {point.id: point for point in make_points(unit_vectors(20))}
    (page,) = index.scroll()
    for point in page:
        number = int(written[point.id].payload["path"].removesuffix(".png"))
        assert point.payload == {"path": f"{number}.png", "_edje": {"record": number}}
        assert point.vector.shape == (0,)
        assert point.vector.dtype == np.float32
    (page,) = index.scroll(tokens=True, vectors=True)
    for point in page:
        assert point.payload == written[point.id].payload
        assert point.vector.dtype == np.float32
        np.testing.assert_allclose(
            point.vector, written[point.id].vector, atol=float32_slack(1, roundings=DOT)
        )
    for tokens in (False, True):
        (page,) = index.scroll(payload=False, tokens=tokens, vectors=True)
        for point in page:
            assert point.payload == {}
            np.testing.assert_allclose(
                point.vector, written[point.id].vector, atol=float32_slack(1, roundings=DOT)
            )


def test_scroll_by_filter(engine: Engine) -> None:
    index = filled(engine, 60)
    index.set_payload({image_id(n): {"third": n % 3} for n in range(60)})
    pages = [*index.scroll(batch_size=6, filter={"third": [0, 2]})]
    assert ids(pages) == in_order(n for n in range(60) if n % 3 != 1)
    assert [len(page) for page in pages] == [6] * 6 + [4]
    assert ids(index.scroll(filter={})) == in_order(range(60))


def test_pages_may_be_deleted_as_they_come(engine: Engine) -> None:
    index = filled(engine, 50)
    seen: list[str] = []
    for page in index.scroll(batch_size=7):
        seen += ids([page])
        index.delete(ids([page]))
    assert seen == in_order(range(50))
    assert index.count() == 0


def test_pages_may_be_changed_as_they_come(engine: Engine) -> None:
    index = filled(engine, 50)
    index.flush()
    index.optimize()
    index.upsert(make_points(unit_vectors(10), 50))
    seen: list[str] = []
    for number, page in enumerate(index.scroll(batch_size=7)):
        seen += ids([page])
        index.set_payload({point.id: {"_edje": {"record": 1000, "n": number}} for point in page})
        if number % 2:  # written again: another vector, another place in the engine
            index.upsert([Point(p.id, unit_vectors(1, seed=1)[0], p.payload) for p in page])
        if number == 4:
            index.flush()
            index.optimize()
    assert seen == in_order(range(60))
    assert ids(index.scroll()) == in_order(range(60))


def test_what_changes_elsewhere_leaves_the_rest_alone(engine: Engine) -> None:
    index = filled(engine, 60)
    order = in_order(range(60))
    seen: list[str] = []
    gone: set[str] = set()
    for number, page in enumerate(index.scroll(batch_size=10)):
        seen += ids([page])
        ahead = order[10 * number + 10 :][:3]  # the next page was to begin with the first of these
        gone.update(ahead)
        index.delete([*ahead, *order[10 * number :][:2]])
        index.upsert(make_points(unit_vectors(20), 1000 + 20 * number))
    assert len(seen) == len({*seen})
    assert seen == sorted(seen)
    assert {*order} - gone <= {*seen}
    assert gone.isdisjoint(seen)


def test_scrolls_do_not_disturb_each_other(engine: Engine) -> None:
    index = filled(engine, 30)
    first, second = index.scroll(batch_size=4), index.scroll(batch_size=4, filter={"path": "3.png"})
    assert [p.id for p in next(first)] == in_order(range(30))[:4]
    assert ids(second) == [image_id(3)]
    assert ids(first) == in_order(range(30))[4:]


def test_bad_arguments_are_refused_before_the_first_page(engine: Engine) -> None:
    index = engine.create()
    with pytest.raises(ConfigError, match="batch_size is 0"):
        index.scroll(batch_size=0)
    with pytest.raises(ConfigError, match="'year'"):
        index.scroll(filter={"year": 3.5})


def test_closed_in_mid_scroll(engine: Engine) -> None:
    index = filled(engine, 10)
    pages = index.scroll(batch_size=4)
    next(pages)
    index.close()
    with pytest.raises(StoreError, match="closed; open it again"):
        next(pages)
    uses = [
        index.scroll,
        index.reload_metadata,
        lambda: index.set_payload({}),
        lambda: index.remove_payload_keys([], []),
        lambda: index.set_metadata({}),
        lambda: index.delete_matching({"path": "0.png"}),
        lambda: index.count({"path": "0.png"}),
    ]
    for use in uses:
        with pytest.raises(StoreError, match="closed; open it again"):
            use()
