"""Kernels and waits of a training step and of sampling, as the benchmark counts them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_guide.networks import EDM2UNet
from scripts.benchmarks import waits
from scripts.benchmarks.waits import counts

SIZES: dict[str, Any] = {
    "num_classes": 4,
    "model_channels": 8,
    "channel_mult": [1],
    "num_blocks": 1,
    "attention_resolutions": [],
}
STEP, PLAIN, CFG, AUTO = (
    "training step",
    *(f"network call of sampling, {name}" for name in ("without guidance", "classifier-free guidance", "autoguidance")),
)


class Waiting(EDM2UNet):
    """Waits twice in each call."""

    def forward(self, x: Tensor, c_noise: Tensor, embedding: Tensor | None) -> Tensor:
        assert float(x.sum()) == float(x.sum())
        return super().forward(x, c_noise, embedding)


def test_nothing_waits_and_guidance_by_the_same_network_costs_few_kernels() -> None:
    found = counts(EDM2UNet((1, 32, 32), **SIZES))
    assert {name: waited for name, (_, waited) in found.items()} == dict.fromkeys((STEP, PLAIN, CFG, AUTO), 0)
    kernels = {name: launched for name, (launched, _) in found.items()}
    assert 50 < kernels[PLAIN] < kernels[CFG] < kernels[PLAIN] + 20, "both labels are one batch"
    assert kernels[AUTO] > kernels[PLAIN] + 50 and kernels[STEP] > 3 * kernels[PLAIN]


def test_waits_are_those_of_a_step_and_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waits, "SAMPLER", waits.Heun(waits.KarrasGrid(1)))
    monkeypatch.setattr(waits, "CALLS", 1)
    torch.manual_seed(0)
    found = counts(Waiting((1, 32, 32), **SIZES))
    assert {name: waited for name, (_, waited) in found.items()} == {STEP: 2, PLAIN: 2, CFG: 2, AUTO: 2}
