"""Training statistics: means by noise level, gradients that are not finite, and the limit of bad steps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from callbacks import PostHocEMA, RunCheckpoint
from lightning_guide.training.losses import LossTerms
from lightning_guide.training.monitor import GradientGuard, NoiseLevelMeans, TrainingDivergedError
from tests import runs
from tests.runs import TinyImages, tiny_module, tiny_trainer


def alone(sums: Tensor) -> Tensor:
    return sums


# --- means by noise level ------------------------------------------------------------------------------


def test_means_by_noise_level() -> None:
    means = NoiseLevelMeans([0.1, 1.0])
    assert means.report(alone) == {}
    for error, sigma in (([1.0, 2.0, 30.0], [0.05, 0.07, 2.0]), ([3.0, 50.0], [0.1, 80.0])):
        errors = torch.tensor(error, requires_grad=True)
        means.update(LossTerms(errors * 2, errors, torch.tensor(sigma)))
    report = means.report(alone)
    assert report == {"loss": 86 / 5, "loss_sigma_0_to_0.1": 2.0, "loss_sigma_1_to_inf": 40.0}
    assert means.report(alone) == {}  # was reset


def test_means_over_processes() -> None:
    means = NoiseLevelMeans([1.0])
    means.update(LossTerms(torch.ones(2), torch.tensor([1.0, 4.0]), torch.tensor([0.5, 2.0])))
    other = torch.tensor([[5.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
    report = means.report(lambda sums: sums + other)
    assert report == {"loss": 10 / 4, "loss_sigma_0_to_1": 2.0, "loss_sigma_1_to_inf": 4.0}


@pytest.mark.parametrize("edges", [[1.0, 0.1], [0.1, 0.1]])
def test_edges_must_ascend(edges: list[float]) -> None:
    with pytest.raises(ValueError, match="noise-level bins need ascending edges"):
        NoiseLevelMeans(edges)


# --- gradients -----------------------------------------------------------------------------------------


class Pair(nn.Module):
    def __init__(self, a: list[float] | None, b: list[float] | None) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.zeros(2)) for _ in range(3))
        for parameter, gradient in ((self.a, a), (self.b, b)):
            parameter.grad = None if gradient is None else torch.tensor(gradient)


def test_finite_gradients_are_unchanged() -> None:
    guard, pair = GradientGuard(1), Pair([1.0, -2.0], [3e18, 0.0])
    guard.sanitize(pair, 0)
    assert pair.a.grad is not None and pair.a.grad.tolist() == [1.0, -2.0] and guard.zeroed == 0
    assert pair.b.grad is not None and pair.b.grad.tolist() == [torch.tensor(3e18).item(), 0.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e19])
def test_non_finite_elements_are_zeroed_and_counted(bad: float) -> None:
    guard = GradientGuard(1)
    for _ in range(3):  # steps with some finite gradient do not count as bad
        pair = Pair([1.0, bad], [4.0, 5.0])
        guard.sanitize(pair, 0)
        assert pair.a.grad is not None and pair.a.grad.tolist() == [1.0, 0.0]
        assert pair.b.grad is not None and pair.b.grad.tolist() == [4.0, 5.0] and pair.c.grad is None
    assert (guard.zeroed, guard.bad_steps) == (3, 0)


def test_patience_counts_consecutive_steps_without_a_finite_gradient() -> None:
    guard = GradientGuard(3)
    bad = [math.nan, math.nan]
    for step, gradients in enumerate([(bad, bad), (bad, bad), ([1.0, 1.0], bad), (bad, bad), (bad, bad)]):
        pair = Pair(*gradients)
        guard.sanitize(pair, step)
        if gradients == (bad, bad):
            assert pair.a.grad is None and pair.b.grad is None  # so that momentum does not move the weights
    assert guard.bad_steps == 2 and guard.zeroed == 18
    with pytest.raises(TrainingDivergedError, match=r"for 3 steps in a row; .* before step 5, .* after 3 steps"):
        guard.sanitize(Pair(bad, bad), 5)


def test_module_without_gradients_is_unchanged() -> None:
    guard = GradientGuard(1)
    guard.sanitize(Pair(None, None), 0)
    assert (guard.zeroed, guard.bad_steps) == (0, 0)


def test_patience_is_at_least_one() -> None:
    with pytest.raises(ValueError, match="max_bad_steps must be at least 1, got 0"):
        tiny_module(max_bad_steps=0)


# --- in training ---------------------------------------------------------------------------------------


class Spoil(pl.Callback):
    """Makes gradients bad at the micro-steps `steps`: one element of one tensor, or all."""

    def __init__(self, steps: range, value: float, *, everything: bool) -> None:
        self.steps, self.value, self.everything = steps, value, everything
        self.weights: list[Tensor] = []
        self._step = -1

    def on_after_backward(self, trainer: pl.Trainer, module: Any) -> None:
        self._step += 1
        if self._step in self.steps:
            for parameter in list(module.parameters())[: None if self.everything else 1]:
                parameter.grad.flatten()[: None if self.everything else 1].fill_(self.value)

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *args: Any) -> None:
        self.weights.append(torch.cat([p.detach().flatten() for p in module.parameters()]))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_single_bad_elements_zero_only_themselves(tmp_path: Path, value: float) -> None:
    spoil = Spoil(range(1, 4), value, everything=False)
    module = tiny_module(average=None, max_bad_steps=1)
    tiny_trainer(tmp_path, spoil, steps=6).fit(module, datamodule=TinyImages())
    assert module._guard.zeroed == 3
    assert all(weights.isfinite().all() for weights in spoil.weights)
    assert all(not torch.equal(*pair) for pair in zip(spoil.weights, spoil.weights[1:], strict=False))


@pytest.mark.parametrize("factor", [1, 1 + 2**-20])
def test_bad_steps_leave_weights_unchanged_and_training_continues(
    factor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, although weights that are normalized twice may differ by a rounding from those normalized once."""
    normalize = runs.TinyNetwork.constrain

    def with_rounding(network: runs.TinyNetwork) -> None:
        normalize(network)
        network.last.weight.data.mul_(factor)

    monkeypatch.setattr(runs.TinyNetwork, "constrain", with_rounding)
    spoil = Spoil(range(2, 4), math.nan, everything=True)
    tiny_trainer(tmp_path, spoil, steps=6).fit(tiny_module(average=None, max_bad_steps=3), datamodule=TinyImages())
    changed = [not torch.equal(*pair) for pair in zip(spoil.weights, spoil.weights[1:], strict=False)]
    assert changed == [True, False, False, True, True]


class Poisoned(TinyImages):
    """Data with a single NaN from the third batch on."""

    def encode(self, raw: Tensor) -> Tensor:
        x = super().encode(raw)
        assert self.trainer is not None
        if self.trainer.global_step >= 2:
            x[0, 0, 0, 0] = math.nan
        return x


def test_persistently_bad_loss_ends_the_run_and_keeps_good_weights(tmp_path: Path) -> None:
    spoil = Spoil(range(0), 0, everything=True)
    callbacks = [PostHocEMA(8), RunCheckpoint(1), spoil]
    with pytest.raises(TrainingDivergedError, match=r"not finite for 3 steps in a row; .* step 4, .* after 2 steps"):
        module = tiny_module(average=None, max_bad_steps=3)
        tiny_trainer(tmp_path, *callbacks, steps=20).fit(module, datamodule=Poisoned())
    assert torch.equal(spoil.weights[1], spoil.weights[-1])
    saved = runs.checkpoint(tmp_path)
    assert saved["global_step"] == 4 and saved["gradient_guard"]["bad_steps"] == 2
    found = runs.snapshots(tmp_path)
    assert {snapshot["images"] for snapshot in found.values()} == {8, 16}
    tensors = [t for snapshot in found.values() for t in snapshot["tensors"].values()]
    assert all(t.isfinite().all() for t in [*saved["state_dict"].values(), *tensors])


def test_counts_survive_a_resume(tmp_path: Path) -> None:
    def fit(steps: int, **options: Any) -> None:
        spoil = Spoil(range(1), math.nan, everything=False)
        trainer = tiny_trainer(tmp_path, RunCheckpoint(2), spoil, steps=steps)
        trainer.fit(tiny_module(average=None), datamodule=TinyImages(), **options)

    fit(2)
    fit(4, ckpt_path=runs.newest_checkpoint(tmp_path), weights_only=True)
    assert runs.checkpoint(tmp_path)["gradient_guard"] == {"zeroed": 2, "bad_steps": 0}
