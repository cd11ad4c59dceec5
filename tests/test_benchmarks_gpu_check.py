"""The checks for a GPU on the emulated device and on the CPU; what needs CUDA is said, and failures are contained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lightning_guide.compiled import compiled_call
from scripts.benchmarks import gpu_check
from scripts.benchmarks.gpu import compiled, guidances, ranks, speed, training, waits
from scripts.benchmarks.gpu.place import TINY, NotRunError, Place, Row, Size, at_most, float32_as
from scripts.benchmarks.gpu.results import CHECKS, Check, Result, run_check, table
from scripts.lib.emulated_device import DEVICE, EmulatedDevice

EMULATED = Place(DEVICE, {})  # no compiler knows its tensors
CPU = Place(torch.device("cpu"), {"compiled": lambda: compiled_call("eager")})


def rows(result: Result) -> dict[str, str]:
    """Name -> value, of a check that passed."""
    assert result.status == "ok", result
    return {row["name"]: row["value"] for row in result.rows}


@pytest.mark.parametrize(
    "name", ["guidances", *(pytest.param(name, marks=pytest.mark.slow) for name in ("training", "speed"))]
)
def test_checks_run_on_the_emulated_device(name: str) -> None:
    with EmulatedDevice():
        found = rows(run_check(name, CHECKS[name], EMULATED, TINY))
    without = {key: value[9:] for key, value in found.items() if value.startswith("not run: ")}
    memory = {f"memory of that, {name}": "needs CUDA" for name in ("float32", "bfloat16", "float16")}
    assert without == {"guidances": {}, "training": {"TF32": "needs CUDA"}, "speed": memory}[name]
    assert len(found) - len(without) == {"guidances": 8, "training": 9, "speed": 11}[name]


@pytest.mark.parametrize(
    "name", ["guidances", *(pytest.param(name, marks=pytest.mark.slow) for name in ("training", "speed"))]
)
def test_checks_run_on_the_cpu_in_16_bits(name: str) -> None:
    found = rows(run_check(name, CHECKS[name], CPU, TINY))
    assert {value for value in found.values() if value.startswith("not run")} <= {"not run: needs CUDA"}
    assert sum("float16" in key for key in found) == {"guidances": 4, "training": 6, "speed": 9}[name]


def test_waits_are_counted_by_emulation_wherever_it_runs() -> None:
    found = rows(run_check("waits", CHECKS["waits"], CPU, TINY))
    assert found["CFG, waits by emulation"] == found["autoguidance, waits by emulation"] == "0"
    assert sum(value == "not run: needs CUDA" for value in found.values()) == 3


def test_compiled_sampling_says_what_is_not_run() -> None:
    with EmulatedDevice():
        found = rows(run_check("compiled", CHECKS["compiled"], EMULATED, TINY))
    assert found == {"compiled": "not run: needs CUDA", "graphs": "not run: needs CUDA"}


@pytest.mark.slow
def test_compiled_sampling_is_compared_with_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    found = rows(run_check("compiled", CHECKS["compiled"], CPU, TINY))
    assert len(found) == 8 and found["compiled, PAG: graphs of another weight"] == "0"


@pytest.mark.slow
def test_two_ranks_train_as_one_process() -> None:
    assert set(rows(run_check("ranks", CHECKS["ranks"], CPU, TINY))) == {"two ranks against one process"}


def test_one_rank_alone_would_not_train_as_one_process() -> None:
    alone, half, start = (
        ranks.trained(CPU.device, rows, steps=steps)
        for rows, steps in ((slice(None), 2), (slice(2), 2), (slice(None), 0))
    )
    assert alone.isfinite().all() and ranks.apart(half, alone, start) > 0.05


def test_a_wrong_number_fails_its_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guidances, "draw", lambda model, device, count: torch.full((1,), 1.0 + (device == DEVICE)))
    with EmulatedDevice():
        found = run_check("guidances", CHECKS["guidances"], EMULATED, TINY)
    assert found.status == "failed"
    assert {row["value"] for row in found.rows if row["passed"] is False} == {"1"}
    assert not any(row.passed for row in (at_most("", float("nan"), 1.0), at_most("", 2.0, 1.0)))


def test_what_is_raised_is_recorded_with_the_rows_before_it(tmp_path: Path) -> None:
    def broken(place: Place, size: Size) -> Iterator[Row]:
        yield at_most("first", 0.5, 1.0)
        raise RuntimeError("CUDA error: an illegal address\nmore")

    def absent(place: Place, size: Size) -> Iterator[Row]:
        yield at_most("first", 0.5, 1.0)
        raise NotRunError("needs two GPUs")

    found = [run_check(name, Check(run, 1.0), CPU, TINY) for name, run in (("broken", broken), ("absent", absent))]
    assert [each.status for each in found] == ["failed", "not run"] and all(len(each.rows) == 1 for each in found)
    assert found[0].error.startswith("RuntimeError: CUDA error: an illegal address (") and "more" not in found[0].error
    gpu_check.write(tmp_path / "a" / "check", found, CPU, 3.0)
    written = json.loads((tmp_path / "a" / "check.json").read_text())
    assert written["device"] == "cpu" and [each["status"] for each in written["checks"]] == ["failed", "not run"]
    lines = (tmp_path / "a" / "check.md").read_text().splitlines()
    assert (
        lines[3] == "| first | 0.5 | at most 1 | ok |"
        and lines[4] == "| **absent** (0 s) | not run: needs two GPUs | | |"
    )
    assert len({line.count("|") for line in lines}) == 1 and table(found, "x").startswith("| x |")


def test_a_check_is_killed_after_its_budget() -> None:
    found = gpu_check.run_apart("waits", ["--device", "cpu"], 0.05)
    assert (found.status, found.error) == ("failed", "not done in 0.05 s")


@pytest.mark.slow
def test_the_command_runs_checks_in_processes_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("waits", "training"):
        monkeypatch.setitem(CHECKS, name, replace(CHECKS[name], budget=600.0))  # on a busy machine
    gpu_check.main(device="cpu", tiny=True, only=["waits"], out=str(tmp_path / "result"))
    written = json.loads((tmp_path / "result.json").read_text())
    assert [(each["name"], each["status"]) for each in written["checks"]] == [("waits", "ok")]
    with pytest.raises(SystemExit):  # a device without numbers
        gpu_check.main(device="meta", tiny=True, only=["training"], out=str(tmp_path / "broken"))


def test_wrong_settings_and_absent_gpus_are_said_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="there is no check 'speeed'; expected one of guidances, training"):
        gpu_check.main(only=["speeed"])
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="there is no GPU of CUDA here; expected one, or --device cpu"):
            gpu_check.main()


def test_all_budgets_are_less_than_eight_minutes_and_every_check_is_there() -> None:
    assert sum(check.budget for check in CHECKS.values()) < 480
    modules = (guidances, training, speed, compiled, waits, ranks)
    assert [check.run for check in CHECKS.values()] == [module.check for module in modules]


def test_what_must_be_carried_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    gpu_check.main(carry=True)
    lines = capsys.readouterr().out.split()
    assert lines[:2] == ["lightning_guide/", "callbacks/"] and all(
        (gpu_check.ROOT / line).is_dir() for line in lines[:5]
    )
    names = {line.partition("==")[0] for line in lines[5:]}
    assert {"jsonargparse", "lightning"} <= names and not names & {"torch", "sympy", "jinja2"}


def test_float32_is_exact_within_the_context_alone() -> None:
    before = torch.backends.cuda.matmul.fp32_precision
    with float32_as("ieee"):
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    assert torch.backends.cuda.matmul.fp32_precision == before
