"""Evaluations on the emulated device: the CPU's results, no mixed devices, a bounded number of waits in a batch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from callbacks import EarlySnapshots, PostHocEMA
from lightning_guide.evaluation import (
    FrechetDistance,
    RawPixels,
)
from lightning_guide.guidance import Autoguidance, Snapshot
from lightning_guide.networks import EDM2UNet
from scripts.lib.emulated_accelerator import EmulatedStrategy
from scripts.lib.emulated_device import DEVICE, EmulatedDevice, Wait
from tests.devices import UNET
from tests.runs import TinyImages, evaluation, tiny_module, tiny_trainer


class Batches(pl.Callback):
    """The waits of each batch of an evaluation, by loop."""

    def __init__(self, device: EmulatedDevice) -> None:
        self.device, self.found = device, list[tuple[int, list[Wait]]]()

    def on_validation_batch_start(self, *arguments: Any) -> None:
        self.device.forget()

    def on_validation_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, *rest: Any) -> None:
        self.found.append((rest[-1], list(self.device.waits)))
        if outputs is not None:
            assert outputs.x.device == DEVICE


def network() -> EDM2UNet:
    torch.manual_seed(0)
    return EDM2UNet((1, 4, 4), num_classes=3, **UNET | {"channel_mult": [1], "attention_resolutions": []})


def test_evaluation_has_the_results_of_the_cpu_and_waits_twice_a_batch(tmp_path: Path) -> None:
    callbacks = PostHocEMA(8), EarlySnapshots(["1/2"])
    tiny_trainer(tmp_path, *callbacks, steps=4).fit(tiny_module(network(), average=None), datamodule=TinyImages())

    def results(*watching: pl.Callback, **options: Any) -> dict[str, float]:
        guided = evaluation(Autoguidance(Snapshot("1/2", 0.05), 2.0), num_samples=3, repetitions=2)
        metrics = {"fd": FrechetDistance(RawPixels())}
        module = tiny_module(network(), average=0.05, evaluations={"auto": guided}, metrics=metrics)
        trainer = tiny_trainer(tmp_path, *watching, limit_val_batches=1.0, **options)
        (first, *_) = trainer.validate(module, datamodule=TinyImages(), verbose=False)
        return {key: value for key, value in first.items() if not key.endswith("seconds")}

    expected = results()
    with EmulatedDevice() as device:
        batches = Batches(device)
        assert results(batches, accelerator="auto", strategy=EmulatedStrategy()) == pytest.approx(expected, rel=1e-4)
    heldout = [waits for loop, waits in batches.found if loop == 0]
    drawn = [Counter(wait.place.split(":")[0] for wait in waits) for loop, waits in batches.found if loop == 1]
    assert heldout and not any(heldout)
    assert len(drawn) == 3 and drawn[:2] == [{"lightning_guide/evaluation/sampling_loop.py": 2}] * 2
