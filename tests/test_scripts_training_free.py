"""Tools of the comparison of training-free methods: rate search, stored results, memory measurement, seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.benchmarks.training_free import recorded_peak
from scripts.lib.problems import TUNING_SEED, Problem
from scripts.studies.training_free.comparison import Log, search_rate


@pytest.mark.parametrize(
    ("best", "found"), [(0.9, 1.0), (4.0, 10**0.5), (25.0, 10**1.5), (400.0, 100.0), (1e-9, 10**-2.5)]
)
def test_the_search_approaches_the_best_rate_within_its_budget(best: float, found: float) -> None:
    tried: list[float] = []

    def cost(rate: float) -> float:
        tried.append(rate)
        return float(abs(torch.tensor(rate / best).log()))

    assert search_rate(cost, 6) == pytest.approx(found)
    assert len(tried) == len(set(tried)) <= 6


def test_results_are_computed_once_and_stored_on_disk(tmp_path: Path) -> None:
    calls = []

    def compute() -> dict[str, float]:
        calls.append(1)
        return {"fd": 0.1 + len(calls), "lost": float("nan")}

    log = Log(tmp_path / "new" / "digits.jsonl")
    assert log.get(["label", "DPS", 0.3, 1], compute)["fd"] == 1.1
    again = Log(tmp_path / "new" / "digits.jsonl")
    assert again.get(["label", "DPS", 0.3, 1], compute)["fd"] == 1.1 and len(calls) == 1
    assert again.get(["label", "DPS", 0.3, 2], compute)["fd"] == 2.1 and len(calls) == 2


def test_peak_memory_is_exact() -> None:
    def work() -> None:
        a, b = torch.empty(1000, 100), torch.empty(500, 100)
        del a
        c: Any = torch.empty(700, 100)
        del b, c

    assert recorded_peak(work) == 600_000

    def differentiated() -> None:
        x = torch.randn(1000, 100, requires_grad=True)
        y = x.sin().sin().sin()
        torch.autograd.grad(y.sum(), x)

    assert 5 * 400_000 <= recorded_peak(differentiated) <= 8 * 400_000  # x, three sines, and intermediate gradients


def test_tuning_and_results_use_different_hidden_images() -> None:
    problem = Problem("inpainting", None, 5)  # type: ignore[arg-type]
    blocks = [problem.seeds(seed).indices for seed in (TUNING_SEED, 0, 1, 2)]
    indices = [index for block in blocks for index in block]
    assert len(indices) == len(set(indices)) == 20
    label = Problem("label", None, 5)  # type: ignore[arg-type]
    assert list(label.seeds(0).indices) == list(label.seeds(1).indices) == [0, 1, 2, 3, 4]
