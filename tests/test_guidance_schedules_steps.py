"""Windows of steps: fractions of a trajectory, half-open, whole steps, weight 1 outside."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest
import torch

from lightning_guide.denoiser import Denoiser, Trajectory
from lightning_guide.distributions.gaussian_mixture import GaussianMixture
from lightning_guide.guidance import ClassifierFreeGuidance, Guided, Main
from lightning_guide.guidance.combinations import Combination, Plain, Rescale
from lightning_guide.guidance.schedules import StepWindow
from lightning_guide.noise import KarrasGrid
from lightning_guide.samplers import Euler, Heun
from lightning_guide.seeds import SampleSeeds

GOOD, BAD = (GaussianMixture(torch.zeros(1, 2), spread * torch.eye(2)[None]) for spread in (0.2, 0.5))
X, LEVEL = torch.randn(4, 2, dtype=torch.float64), torch.tensor(0.6)


def predicted(step: int, steps: int, low: float, high: float, negative: torch.nn.Module = BAD) -> torch.Tensor:
    guided = Guided([negative], [2.0], positive=GOOD, combination=StepWindow(low, high))  # type: ignore[list-item]
    place = Trajectory(x=X, seeds=SampleSeeds(0, range(4)), sigma=0.6, step=step, steps=steps)
    return guided.start(place)(X, LEVEL, None).clean


@pytest.mark.parametrize("steps", [1, 3, 10, 30, 32])
@pytest.mark.parametrize(("low", "high"), [("0", "1"), ("0.1", "0.9"), ("0.2", "0.3"), ("0.7", "1")])
def test_inside_is_plain_and_outside_the_negative_is_not_called(steps: int, low: str, high: str) -> None:
    for step in range(steps):
        if Fraction(low) <= Fraction(step, steps) < Fraction(high):
            torch.testing.assert_close(
                predicted(step, steps, float(low), float(high)), 2 * GOOD(X, LEVEL) - BAD(X, LEVEL)
            )
        else:
            uncallable = Main()  # a reference raises when it is called
            assert torch.equal(predicted(step, steps, float(low), float(high), uncallable), GOOD(X, LEVEL))


def test_a_step_is_inside_with_both_stages() -> None:
    guided = Guided([BAD], [2.0], positive=GOOD, combination=StepWindow(0.25, 0.75, Plain()))
    counts = [0]
    sampler = Heun(KarrasGrid(4, sigma_min=0.1, sigma_max=5.0))
    for place in sampler.steps(guided, torch.ones(2, 2), seeds=SampleSeeds(0, range(2))):
        counts.append(place.evaluations)
    assert [after - before for before, after in zip(counts, counts[1:], strict=False)] == [2, 4, 4, 1]


@pytest.mark.parametrize(("low", "high"), [(-0.1, 1.0), (0.5, 0.5), (0.9, 0.1), (0.0, 1.1), (float("nan"), 1.0)])
def test_windows_are_fractions(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="a window of steps needs 0 <= low < high <= 1"):
        StepWindow(low, high)


class Labeled(Denoiser):
    """D = x / 2, or 0 without a label; records the size of each batch."""

    data_shape, num_classes, sigma_data = (2,), 4, 0.5

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        self.batches.append(len(x))
        return x / 2 if condition is None else x / 2 * (condition >= 0)[:, None]


AROUND: list[Callable[[StepWindow], Combination]] = [
    lambda window: window,
    lambda window: Rescale(combination=window),
    lambda window: StepWindow(combination=window),
]


@pytest.mark.parametrize("around", AROUND)
def test_outside_no_negative_shares_the_batch_of_the_positive(around: Callable[[StepWindow], Combination]) -> None:
    """A condition that shares the batch of the positive is not evaluated either where the window is closed."""
    model = Labeled()
    guided = ClassifierFreeGuidance(2.0, positive=model, combination=around(StepWindow(0.5, 1.0)))
    labels = torch.arange(4)
    end = Euler(KarrasGrid(4)).sample(guided, seeds=SampleSeeds(0, range(4)), condition=labels)
    assert (model.batches, end.evaluations) == ([4, 4, 8, 8], 6)
