from __future__ import annotations

import importlib.util
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import run

from edje_qdrant.cli.plan import _duration
from edje_qdrant.errors import ConfigError
from edje_qdrant.planning.plan import Plan, Workload, load_constants, plan

ROOT = Path(__file__).parents[2]
OF = {"date": "2026-01-01", "machine": "m", "command": "c", "what": "w", "measured": True}
CONSTANTS: dict[str, dict[str, Any]] = {
    "first_stage_ms": {"value": 2.0, "pictures": 100_000, "candidates": 100, **OF},
    "index_bytes_besides_vectors": {"value": 904, **OF},
    "fetch_ms": {"value": {"float16": 0.4, "pq32": 0.3}, "candidates": 100, **OF},
    "decode_ms": {"value": {"float16": 0.0, "pq32": 4.0}, "candidates": 100, **OF},
    "cpu_pairs_per_second_and_core": {"value": 40, **OF},
    "gpu_pairs_per_second": {"value": 100_000, **OF, "measured": False},
    "images_per_second_two_cores": {"value": 0.4, **OF},
    "decode_photograph_ms": {"value": 100, **OF},
    "images_per_second_gpu": {"value": 400, "cores": 16, **OF},
}
WORKLOAD = Workload(images=10**9, qps=500, codec="pq32", load=0.5, machine_ram_gb=250)


def value(found: Plan, what: str) -> float:
    (line,) = [line for line in found.lines if line.what == what]
    return line.value


def test_the_arithmetic_is_that_of_a_pencil() -> None:
    found = plan(WORKLOAD, CONSTANTS)
    assert value(found, "side files") == 10**9 * 64 * 32
    assert found.disk_bytes == 10**9 * (64 * 32 + 4 * 1024 + 904)
    assert found.ram_bytes == 5 * 10**12
    assert found.shards == found.machines == 40  # 5 TB in halves of 250 GB
    per_shard = 2.0 * math.log(25e6) / math.log(1e5)
    reading = 500 * 0.3 / 1000 / 0.5
    assert found.cores == math.ceil(500 * 40 * per_shard / 1000 / 0.5 + reading)
    assert found.gpus == 1  # 50,000 pairs a second of 100,000, half of the time
    assert value(found, "bytes read") == 50_000 * 2048
    assert value(found, "encoding all images on CPUs") == pytest.approx(1e9 / 0.2 / 86_400)


def test_without_gpus_cores_decode_and_score() -> None:
    gpu, cpu = plan(WORKLOAD, CONSTANTS), plan(replace(WORKLOAD, accelerator="cpu"), CONSTANTS)
    assert cpu.gpus == 0
    decoding = 500 * 4.0 / 1000 / 0.5
    assert cpu.cores - gpu.cores == pytest.approx(50_000 / (40 * 0.5) + decoding, abs=1)


def test_replicas_are_stored_in_full_and_searched_once() -> None:
    one, three = plan(WORKLOAD, CONSTANTS), plan(replace(WORKLOAD, replicas=3), CONSTANTS)
    assert three.disk_bytes == 3 * one.disk_bytes
    assert three.ram_bytes == 3 * one.ram_bytes
    assert (three.shards, three.machines) == (one.shards, 3 * one.machines)
    assert (three.cores, three.gpus) == (one.cores, one.gpus)


def test_a_first_ingest_takes_as_long_as_its_slowest_step() -> None:
    found = plan(Workload(images=10_000, cores=2), CONSTANTS)
    assert found.ingest_cpu_seconds == pytest.approx(10_000 / 0.4)
    assert found.ingest_gpu_small_seconds == pytest.approx(10_000 / 400)
    assert found.ingest_gpu_seconds == pytest.approx(10_000 * 0.1 / 16)  # decoding
    fast = {**CONSTANTS, "decode_photograph_ms": {"value": 1, **OF}}
    assert plan(Workload(images=10_000), fast).ingest_gpu_seconds == found.ingest_gpu_small_seconds
    four = plan(Workload(images=10_000, cores=4), CONSTANTS)
    assert four.ingest_cpu_seconds == found.ingest_cpu_seconds / 2


def test_fewer_tokens_take_less_of_everything_that_depends_on_them() -> None:
    few = plan(replace(WORKLOAD, num_tokens=16, accelerator="cpu"), CONSTANTS)
    many = plan(replace(WORKLOAD, accelerator="cpu"), CONSTANTS)
    assert value(few, "side files") * 4 == value(many, "side files")
    ratio = value(few, "pairs of one of the cores") / value(many, "pairs of one of the cores")
    assert ratio == pytest.approx((64 + 19) / (16 + 19))
    assert any("scaled by their number" in note for note in few.notes)
    assert not any("scaled by their number" in note for note in many.notes)


def test_own_rates_take_the_place_of_shipped_ones_and_of_the_warning() -> None:
    shipped = plan(WORKLOAD, CONSTANTS)
    assert any(note.startswith("gpu_pairs_per_second") for note in shipped.notes)
    own = plan(replace(WORKLOAD, gpu_pairs_per_second=20_000.0), CONSTANTS)
    assert own.gpus == 5
    assert not any(note.startswith("gpu_pairs_per_second") for note in own.notes)
    cpu = plan(replace(WORKLOAD, accelerator="cpu"), CONSTANTS)
    assert not any(note.startswith("gpu_pairs_per_second") for note in cpu.notes)


def test_one_picture_and_a_query_an_hour_fit_on_one_machine() -> None:
    found = plan(Workload(images=1, qps=1 / 3600), CONSTANTS)
    assert (found.shards, found.machines, found.cores, found.gpus) == (1, 1, 1, 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"images": 0}, {"images": 1.5}, {"images": True}, {"qps": 0}, {"qps": math.nan},
        {"qps": math.inf}, {"qps": "many"}, {"codec": "pq33"}, {"candidates": 0},
        {"num_tokens": -1}, {"replicas": 0}, {"machine_ram_gb": 0}, {"load": 0}, {"load": 1.1},
        {"accelerator": "tpu"}, {"gpu_pairs_per_second": 0}, {"cpu_pairs_per_second": -3},
        {"cores": 0},
    ],
)  # fmt: skip
def test_what_cannot_be_planned_is_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=str(next(iter(wrong)))):
        Workload(**{"images": 10, "qps": 1, **wrong})


def test_every_shipped_constant_says_when_where_and_how() -> None:
    constants = load_constants()
    assert set(constants) == set(CONSTANTS)
    for entry in constants.values():
        assert set(OF) <= set(entry)
        assert all(entry[key] for key in ("date", "machine", "command", "what"))


def test_the_shipped_constants_are_those_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    spec = importlib.util.spec_from_file_location(
        "write_planning_constants", ROOT / "docs" / "write_planning_constants.py"
    )
    assert spec is not None
    assert spec.loader is not None
    writer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(writer)
    shipped = (ROOT / "edje_qdrant" / "planning" / "constants.json").read_text(encoding="utf-8")
    assert shipped == writer.text(), "run python docs/write_planning_constants.py"


def test_the_command_shows_every_line_and_where_its_numbers_come_from() -> None:
    arguments = ["plan", "--num-images", "1e9", "--qps", "500", "--codec", "pq32"]
    shown = run(*arguments)
    assert shown.exit_code == 0
    expected = plan(Workload(images=10**9, qps=500, codec="pq32"))
    for line in expected.lines:
        assert line.arithmetic in shown.output
    for entry in expected.constants.values():
        assert entry["date"] in shown.output
        assert entry["machine"] in shown.output
    assert "a goal, not measured" not in shown.output
    as_json = run(*arguments, "--json")
    data = json.loads(as_json.output.splitlines()[-1])
    assert data["gpus"] == expected.gpus
    assert data["disk_bytes"] == expected.disk_bytes
    assert len(data["lines"]) == len(expected.lines)


def test_the_command_says_first_what_a_first_ingest_costs() -> None:
    shown = run("plan", "--num-images", "10000", "--device", "cpu", "--cores", "2")
    assert shown.exit_code == 0
    expected = plan(Workload(images=10_000, accelerator="cpu", cores=2))
    head, cpu, gpu, empty = shown.output.splitlines()[:4]
    assert head.startswith("first ingest of 10,000 photographs")
    hours, seconds = divmod(round(expected.ingest_cpu_seconds), 3600)
    assert cpu == f"  about {hours} h {round(seconds / 60)} min on 2 cores without a GPU"
    assert f"about {round(expected.ingest_gpu_seconds / 60)} min on one NVIDIA H200" in gpu
    assert f"{round(expected.ingest_gpu_small_seconds)} s for files of 640 x 480" in gpu
    assert empty == ""
    assert "\n".join((head, cpu, gpu)) in (ROOT / "docs" / "scaling.md").read_text("utf-8")
    # The figure that the docs name, so that they are changed with it.
    for page in ("README.md", "docs/scaling.md", "docs/faq.md"):
        assert f"{hours} h {round(seconds / 60)} min" in (ROOT / page).read_text("utf-8"), page
    assert f"on {os.cpu_count()} core" in run("plan", "--num-images", "10").output
    old = run("plan", "--num-images", "10000", "--accelerator", "cpu", "--cores", "2")
    assert old.stdout == shown.stdout


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "1 s"), (59, "59 s"), (59.7, "1 min"), (3_599, "1 h"), (22_727, "6 h 19 min"),
        (172_700, "47 h 58 min"), (172_800, "2 days"), (800 * 86_400, "2 years"),
    ],
)  # fmt: skip
def test_durations_are_in_two_units_at_most(seconds: float, words: str) -> None:
    assert _duration(seconds) == words


@pytest.mark.parametrize(
    ("written", "images"),
    [
        ("10k", 10_000),
        ("10K", 10_000),
        ("1.5M", 1_500_000),
        ("2 m", 2_000_000),
        ("1B", 10**9),
        ("10_000", 10_000),
        ("10,000", 10_000),
        ("1,000,000", 10**6),
        ("1e6", 10**6),
        ("10000.0", 10_000),
    ],
)
def test_numbers_are_read_as_people_write_them(written: str, images: int) -> None:
    found = json.loads(
        run("plan", "--num-images", written, "--num-candidates", "1k", "--json").stdout
    )
    assert found["workload"]["images"] == images
    assert found["workload"]["candidates"] == 1000


@pytest.mark.parametrize("written", ["1,5", "10,00", "ten", "10 kk", "k", "_", "", "1e", "0x10"])
def test_what_is_no_number_is_refused_with_examples(written: str) -> None:
    done = run("plan", "--num-images", written)
    assert (done.exit_code, "10k, 2M or 1e6" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--num-images", "1.5", "--qps", "1"], "--num-images"),
        (["--num-images", "nan", "--qps", "1"], "--num-images"),
        (["--num-images", "inf", "--qps", "1"], "--num-images"),
        (["--num-images", "-3", "--qps", "1"], "images"),
        (["--num-images", "10", "--qps", "0"], "qps"),
        (["--num-images", "10", "--qps", "1", "--codec", "zip"], "zip"),
        (["--num-images", "10", "--qps", "1", "--device", "abacus"], "abacus"),
        (["--num-images", "10", "--cores", "-1"], "cores"),
        (["--num-images", "10", "--cores", "0"], "cores"),
    ],
)
def test_the_command_refuses_what_cannot_be_planned(arguments: list[str], says: str) -> None:
    done = run("plan", *arguments)
    assert done.exit_code == 2
    assert says in done.stderr
