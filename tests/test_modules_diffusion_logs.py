"""Scalars that the diffusion module logs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import PostHocEMA
from lightning_guide.guidance import Autoguidance, Snapshot
from lightning_guide.training.learning_rate import InverseSqrtRate
from tests.runs import TinyImages, evaluation, tiny_module, tiny_trainer
from tests.test_modules_diffusion import Draws, fit


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Return tag -> step -> value from the event files."""
    accumulator = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    accumulator.Reload()
    tags = accumulator.Tags()["scalars"]
    return {tag: {event.step: event.value for event in accumulator.Scalars(tag)} for tag in tags}


def test_tensorboard_shows_losses_rates_images_and_evaluations(tmp_path: Path) -> None:
    loss, rate = Draws(), InverseSqrtRate(0.01, decay_images=16)
    module = tiny_module(
        loss=loss,
        learning_rate=rate,
        average=0.05,
        bin_edges=(0.3,),
        evaluations={"plain": evaluation(), "auto": evaluation(Autoguidance(Snapshot("1/2", 0.05)))},
    )
    trainer = tiny_trainer(
        tmp_path,
        PostHocEMA(8),
        steps=6,
        accumulate_grad_batches=2,
        limit_val_batches=1.0,
        val_check_interval=4,
        log_every_n_steps=3,
        logger=TensorBoardLogger(str(tmp_path), name="", version="tensorboard"),
    )
    trainer.fit(module, datamodule=TinyImages())

    found = scalars(tmp_path)
    assert found["images_seen"] == {3: 24, 6: 48}
    assert found["train/skipped_steps"] == {3: 0, 6: 0}
    assert found["train/learning_rate"] == pytest.approx({3: rate.at(16), 6: rate.at(40)})
    assert len(loss.errors) == 12
    for step, half in ((3, slice(6)), (6, slice(6, 12))):
        error, sigma = torch.cat(loss.errors[half]), torch.cat([sigma for _, sigma, _ in loss.seen[half]])
        assert found["train/loss"][step] == pytest.approx(float(error.mean()), rel=1e-5)
        assert found["train/loss_sigma_0_to_0.3"][step] == pytest.approx(float(error[sigma <= 0.3].mean()), rel=1e-5)
        assert found["train/loss_sigma_0.3_to_inf"][step] == pytest.approx(float(error[sigma > 0.3].mean()), rel=1e-5)
    # validations at 4, 8 and 12 micro-steps: 2, 4 and 6 optimizer steps
    assert set(found["heldout/sigma_0.3"]) == set(found["heldout/sigma_1"]) == {2, 4, 6}
    assert found["plain/nfe"] == {2: 3, 4: 3, 6: 3}
    assert found["auto/skipped"] == {2: 1} and found["auto/nfe"] == {4: 6, 6: 6}


def test_without_a_log_interval_nothing_is_logged(tmp_path: Path) -> None:
    for every in (1, 0):
        fit(tmp_path, steps=2, log_every_n_steps=every, logger=CSVLogger(str(tmp_path), name=f"every_{every}"))
    assert [path.parts[-3] for path in tmp_path.rglob("metrics.csv")] == ["every_1"]


# --- gradients in validation ---------------------------------------------------------------------------
