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
from scripts.lib.emulated_device import DEVICE, EmulatedDevice
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


KINDS = [True, False]
"""Whether the optimizer is fused and takes the flag of the device, or follows the decision of the host."""


class Pair(nn.Module):
    """Parameters a and b with gradients, c without, and their optimizer, which has momentum."""

    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.ones(2)) for _ in range(3))
        self.optimizer = torch.optim.Adam(self.parameters(), lr=0.5, fused=fused)
        self.guarded(GradientGuard(1), [1.0, -2.0], [1.0, 1.0])

    def guarded(self, guard: GradientGuard, a: list[float] | None, b: list[float] | None, step: int = 0) -> bool:
        """Take a step; return whether the weights changed."""
        for parameter, gradient in ((self.a, a), (self.b, b)):
            parameter.grad = None if gradient is None else torch.tensor(gradient)
        before = self.weights()
        guard.check(self, self.optimizer, step)
        self.optimizer.step()
        assert self.weights().isfinite().all()
        return not torch.equal(before, self.weights())

    def weights(self) -> Tensor:
        return torch.cat([self.a, self.b, self.c]).detach()


def test_each_optimizer_is_asked_whether_it_takes_a_flag() -> None:
    guard, bad = GradientGuard(10), [math.nan, 1.0]
    pairs = [Pair(fused=fused) for fused in (True, False, True)]
    assert not any(pair.guarded(guard, [1.0, 1.0], bad) for pair in pairs)
    assert guard.state()["skipped"] == 3
    assert [pair.a.grad is None for pair in pairs] == [False, True, False]


@pytest.mark.parametrize("fused", KINDS)
def test_step_with_finite_gradients_is_that_of_the_optimizer(fused: bool) -> None:
    guard, pair, plain = GradientGuard(1), Pair(fused=fused), Pair(fused=fused)
    a, b = [1.0, -2.0], [3e18, 0.0]
    assert pair.guarded(guard, a, b)
    plain.a.grad, plain.b.grad = torch.tensor(a), torch.tensor(b)
    plain.optimizer.step()
    assert torch.equal(pair.weights(), plain.weights())
    assert guard.state() == {"skipped": 0, "bad_steps": 0}


@pytest.mark.parametrize("fused", KINDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e19])
def test_step_with_one_bad_element_is_left_out_and_counted(bad: float, fused: bool) -> None:
    guard, pair, plain = GradientGuard(2), Pair(fused=fused), Pair(fused=fused)
    for _ in range(3):
        assert not pair.guarded(guard, [1.0, bad], [4.0, 5.0])
        assert guard.state()["bad_steps"] == 1
        for each in (pair, plain):
            assert each.guarded(guard, [1.0, 1.0], [4.0, 5.0])
        assert torch.equal(pair.weights(), plain.weights()), "momentum and the count of steps are unchanged, too"
    assert guard.state() == {"skipped": 3, "bad_steps": 0}


@pytest.mark.parametrize("fused", KINDS)
@pytest.mark.parametrize("before", range(4))
def test_patience_counts_consecutive_bad_steps(before: int, fused: bool) -> None:
    """To the step, although the host does not read the count in each."""
    guard, pair, good, bad = GradientGuard(3), Pair(fused=fused), [1.0, 1.0], [math.nan, 1.0]
    steps = [*[good] * before, bad, bad, good, bad, bad]
    assert [pair.guarded(guard, good, each, step) for step, each in enumerate(steps)] == [x is good for x in steps]
    assert guard.state() == {"skipped": 4, "bad_steps": 2}
    words = rf"not finite for 3 steps in a row; .* before step {before + 5}, .* after {before + 3} steps"
    with pytest.raises(TrainingDivergedError, match=words):
        pair.guarded(guard, good, bad, before + 5)


def test_host_waits_once_in_as_many_good_steps_as_patience_has() -> None:
    with EmulatedDevice() as device:
        guard, pair = GradientGuard(4), Pair(fused=True).to(DEVICE)
        pair.optimizer = torch.optim.Adam(pair.parameters(), fused=True)
        gradients, waits = torch.ones(2, device=DEVICE), []
        for _ in range(9):
            pair.a.grad, pair.b.grad = gradients.clone(), gradients.clone()
            device.forget()
            guard.check(pair, pair.optimizer, 0)
            pair.optimizer.step()
            waits.append(len(device.waits))
    assert waits == [0, 0, 0, 1, 0, 0, 0, 1, 0]


def test_module_without_gradients_is_unchanged() -> None:
    guard = GradientGuard(1)
    assert not Pair(fused=True).guarded(guard, None, None)
    assert guard.state() == {"skipped": 0, "bad_steps": 0}


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


@pytest.mark.parametrize("everything", [True, False])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_bad_steps_leave_weights_unchanged_and_training_continues(
    value: float, everything: bool, tmp_path: Path
) -> None:
    spoil = Spoil(range(2, 4), value, everything=everything)
    module = tiny_module(average=None, max_bad_steps=3)
    tiny_trainer(tmp_path, spoil, steps=6).fit(module, datamodule=TinyImages())
    pairs = zip(spoil.weights, spoil.weights[1:], strict=False)
    changed = [not torch.allclose(*pair, rtol=1e-6, atol=0) for pair in pairs]  # normalized once more
    assert changed == [True, False, False, True, True]
    assert module._guard.state() == {"skipped": 2, "bad_steps": 0}


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
    torch.testing.assert_close(spoil.weights[1], spoil.weights[-1], rtol=1e-6, atol=0)
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
    assert runs.checkpoint(tmp_path)["gradient_guard"] == {"skipped": 2, "bad_steps": 0}
