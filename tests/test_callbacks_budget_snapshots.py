"""Snapshots at budgets: stored exactly there; budgets between two steps are rejected."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import pytest

from callbacks import BudgetSnapshots, PostHocEMA
from lightning_guide.runs.models import open_snapshots
from tests.runs import TinyImages, tiny_module, tiny_trainer


def fit(folder: Path, *callbacks: pl.Callback, steps: int = 8, **options: int) -> None:
    tiny_trainer(folder, *callbacks, steps=steps, **options).fit(tiny_module(average=None), datamodule=TinyImages())


def test_averages_are_stored_at_the_budgets(tmp_path: Path) -> None:
    fit(tmp_path, PostHocEMA(1000, sigma_rels=(0.05,)), BudgetSnapshots([20, 8]))
    assert [entry.images for entry in open_snapshots(tmp_path).entries()] == [8, 20, 32]  # and at the end


@pytest.mark.parametrize(
    ("budget", "options", "message"),
    [
        (10, {}, "the budget of 10 images does not end with a step: averages move every 4 images .* expected 8 or 12"),
        (2, {}, "the budget of 2 images .* expected 4"),
        (12, {"accumulate_grad_batches": 2}, "averages move every 8 images .* expected 8 or 16"),
    ],
)
def test_budget_between_two_steps_is_rejected(
    tmp_path: Path, budget: int, options: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, PostHocEMA(1000), BudgetSnapshots([budget]), **options)


def test_budgets_with_averages_updated_every_few_steps(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="averages move every 12 images .* expected 12 or 24"):
        fit(tmp_path, PostHocEMA(1000, update_every_steps=3), BudgetSnapshots([16]))


def test_budget_beyond_the_end_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        fit(tmp_path, PostHocEMA(1000), BudgetSnapshots([8, 64]))
    assert "ends after 32 images and will not reach the budgets [64]" in caplog.text


def test_needs_averages_and_budgets(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="add that callback as well"):
        fit(tmp_path, BudgetSnapshots([8]))
    for budgets in ([], [0]):
        with pytest.raises(ValueError, match="needs budgets >= 1 in images"):
            BudgetSnapshots(budgets)
