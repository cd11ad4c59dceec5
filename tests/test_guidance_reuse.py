"""Reused differences: exact where they are the power of sigma that is assumed, and calls in the steps that are due."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser, Prediction
from lightning_guide.guidance import ClassifierFreeGuidance, Interval
from lightning_guide.guidance.combinations import AdaptiveProjection, Plain, Rescale, ReusedDifference
from lightning_guide.guidance.negatives import RenoiseWithNegative
from lightning_guide.noise import CustomGrid
from lightning_guide.samplers import Euler, Heun, Restart, Sampler
from tests.branches import GRID, LEVELS, SAMPLERS, Blob, blobs, constant_branch, guided, start, trajectory_at, walk


class Apart(Denoiser):
    """D of a model minus sigma^power times a pattern that depends on nothing."""

    num_classes, sigma_data = 0, 0.5

    def __init__(self, model: Blob, power: float) -> None:
        super().__init__()
        self.model, self.power, self.data_shape = model, power, model.data_shape

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.model(x, sigma) - 0.1 * sigma**self.power * self.model.mean.to(x)


def spent(sampler: Sampler, denoiser: Denoiser, x: Tensor) -> list[int]:
    """Return the network calls of each step."""
    counts = [0] + [place.evaluations for place in sampler.steps(denoiser, x, seeds=trajectory_at(x, 1.0).seeds)]
    return [after - before for before, after in zip(counts, counts[1:], strict=False)]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("inner", [Plain(), AdaptiveProjection(eta=0.2, momentum=-0.5), RenoiseWithNegative()])
def test_every_step_is_the_inner_rule_to_the_bit(inner: Plain, sampler: Sampler) -> None:
    models, x = blobs(3, 4, 4), start(3, 4, 4)
    bare = walk(sampler, guided(models, [2.0, 1.5], inner), x)
    wrapped = walk(sampler, guided(models, [2.0, 1.5], ReusedDifference(1, combination=inner)), x)
    assert torch.equal(bare.x, wrapped.x) and bare.evaluations == wrapped.evaluations


@pytest.mark.parametrize("power", [-0.5, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_reuse_is_exact_for_a_power_of_sigma(sampler: Sampler, power: float) -> None:
    model, x = blobs(3, 4, 4)[0], start(3, 4, 4)
    models = [model, Apart(model, power)]
    exact = walk(sampler, guided(models, [3.0]), x)
    reused = walk(sampler, guided(models, [3.0], ReusedDifference(4, power=power)), x)
    other = walk(sampler, guided(models, [3.0], ReusedDifference(4, power=power + 1)), x)
    torch.testing.assert_close(reused.x, exact.x, rtol=1e-10, atol=1e-10)
    assert (other.x - exact.x).abs().max() > 1e-3 and reused.evaluations < exact.evaluations


def test_calls_of_each_step() -> None:
    x = start(3, 4, 4)
    models = blobs(3, 4, 4)[:2]
    assert spent(Heun(GRID), guided(models, [2.0], ReusedDifference(3)), x) == [4, 2, 2, 4, 2, 1]
    assert spent(Euler(GRID), guided(models, [2.0], ReusedDifference(2)), x) == [2, 1, 2, 1, 2, 1]
    assert spent(Euler(GRID), guided(models, [2.0], Rescale(combination=ReusedDifference(9))), x) == [2, 1, 1, 1, 1, 1]
    inside = Interval(2.0, LEVELS[5], LEVELS[1])  # begins in the middle of a period: the first guided step has to call
    assert spent(Euler(GRID), guided(models, [inside], ReusedDifference(2)), x) == [1, 2, 1, 2, 1, 1]
    own = guided(blobs(3, 4, 4), [2.0, inside], ReusedDifference(2))  # each negative counts for itself
    assert spent(Euler(GRID), own, x) == [2, 2, 2, 2, 2, 1]


@pytest.mark.parametrize("steps", [5, 6])
def test_a_restart_evaluates_anew(steps: int) -> None:
    """Whatever the parity of the step that ends the interval: no difference of `low` is used at `high`."""
    model, x = blobs(3, 4, 4)[0], start(3, 4, 4)
    levels = [4.0 / 2**i for i in range(steps)]
    inner = Euler(CustomGrid(levels))
    plain = spent(inner, guided([model, Apart(model, 1.0)], [3.0], ReusedDifference(2)), x)
    sampler = Restart(inner, low=levels[-1], high=2.0, num_steps=3)
    again = spent(sampler, guided([model, Apart(model, 1.0)], [3.0], ReusedDifference(2)), x)
    assert again[:-2] == plain[:-2] and again[-2] - plain[-2] == 6


def test_separate_noise_directions_are_reused() -> None:
    x, pos, neg, n_pos, n_neg = torch.randn(5, 3, 4, dtype=torch.float64)
    trajectory = trajectory_at(x, 2.0, step=0, steps=4)
    rule = ReusedDifference(2, power=1.0)
    first, second = torch.tensor(2.0).double(), torch.tensor(0.5).double()
    rule.combine(constant_branch(pos, n_pos), [(2.0, constant_branch(neg, n_neg))], x, first, trajectory)
    trajectory.step = 1

    def uncalled(x: Tensor, sigma: Tensor) -> Prediction:
        raise AssertionError

    found = rule.combine(constant_branch(2 * pos, n_pos), [(2.0, uncalled)], x, second, trajectory)
    torch.testing.assert_close(found.clean, 2 * pos + 0.25 * (pos - neg))
    assert found.noise is not None
    torch.testing.assert_close(found.noise, n_pos + (n_pos - n_neg))


class Labeled(Denoiser):
    """D = x / 2 with a label, else x / 3; records the size of each batch."""

    data_shape, num_classes, sigma_data = (2,), 4, 0.5

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        self.batches.append(len(x))
        assert condition is not None
        return x / (3 - (condition >= 0).to(x))[:, None]


def test_a_negative_that_is_not_called_is_not_in_the_batch_of_the_positive() -> None:
    model = Labeled()
    reused = ClassifierFreeGuidance(2.0, positive=model, combination=ReusedDifference(2))
    end = walk(Euler(GRID), reused, start(2), torch.tensor([0, 1, 2]))
    assert model.batches == [6, 3, 6, 3, 6, 3] and end.evaluations == 9


@pytest.mark.parametrize("every", [0, -1, 1.5, True, float("nan"), None, "a"])
def test_periods_that_are_none(every: int) -> None:
    kind = "ReusedDifference: every is .*; expected a whole number"
    with pytest.raises(
        ValueError, match=f"^{kind}$|^every of ReusedDifference is .*; expected a whole number from 1 on$"
    ):
        ReusedDifference(every)


def test_power_that_is_none() -> None:
    with pytest.raises(ValueError, match="ReusedDifference needs a finite power, got nan"):
        ReusedDifference(power=float("nan"))
