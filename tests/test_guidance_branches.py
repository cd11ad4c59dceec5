"""Positive and negatives with weights and input in common run as one batch, with the same result."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser, Trajectory
from lightning_guide.guidance import (
    ClassifierFreeGuidance,
    ClassifierFreeGuidancePP,
    Guided,
    IndependentConditionGuidance,
    Interval,
    Main,
    Neon,
    Unconditional,
)
from lightning_guide.guidance.branches import MEMORY, SMALL
from lightning_guide.guidance.combinations import RectifiedGradient
from lightning_guide.guidance.negatives import RandomCondition
from lightning_guide.samplers import Euler
from lightning_guide.seeds import SampleSeeds


class Labeled(Denoiser):
    """D = a_c x, with a of its own for no label; records the size of each batch."""

    data_shape, num_classes, sigma_data = (3,), 4, 0.5

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        self.batches.append(len(x))
        factor = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.9], dtype=x.dtype)
        return x * (factor[4] if condition is None else factor[condition][:, None])


def trajectory_of(x: Tensor) -> Trajectory:
    """A new one at noise level 1."""
    return Trajectory(x=x, seeds=SampleSeeds(0, range(len(x))), sigma=1.0)


@pytest.mark.parametrize(("count", "width"), [(2, 3), (SMALL, 3), (SMALL + 1, 3), (4, MEMORY // 4), (4, MEMORY // 2)])
def test_small_batches_run_together(count: int, width: int) -> None:
    model, x, sigma = Labeled(), torch.randn(count, width, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    labels = torch.arange(count) % 4
    guided = Guided([Unconditional(model), RandomCondition(model)], [3.0, 1.5], positive=model)
    trajectory = trajectory_of(x)
    with torch.no_grad():
        together = guided.start(trajectory)(x, sigma, labels)
    assert model.batches == ([3 * count] if count <= SMALL and count * width <= MEMORY else [count] * 3)
    assert trajectory.evaluations == 3
    random = SampleSeeds(0, range(count)).integers("random condition", 4)
    pos, none, other = (0.1 * (labels[:, None] + 1)) * x, 0.9 * x, (0.1 * (random[:, None] + 1)) * x
    torch.testing.assert_close(together.clean, pos + 2 * (pos - none) + 0.5 * (pos - other))


def test_one_batch_needs_the_same_positive_and_a_weight_that_is_on() -> None:
    model, other, x = Labeled(), Labeled(), torch.randn(2, 3)
    off = ClassifierFreeGuidance(Interval(2.0, 2.0, 3.0), positive=model)
    trajectory = trajectory_of(x)
    with torch.no_grad():
        off.start(trajectory)(x, torch.tensor(1.0), torch.tensor([0, 1]))
        assert (model.batches, trajectory.evaluations) == ([2], 1)
        Guided([Unconditional(other)], [2.0], positive=model).start(trajectory)(x, torch.tensor(1.0), None)
    assert (model.batches, other.batches) == ([2, 2], [2])


@pytest.mark.parametrize("guided", [ClassifierFreeGuidance, ClassifierFreeGuidancePP, IndependentConditionGuidance])
def test_whole_trajectories_agree(guided: type, monkeypatch: pytest.MonkeyPatch) -> None:
    ends, labels = [], torch.tensor([3, 1, 0])
    for small in (SMALL, 0):
        monkeypatch.setattr("lightning_guide.guidance.branches.SMALL", small)
        model = Labeled()
        end = Euler().sample(guided(0.6, positive=model), seeds=SampleSeeds(0, range(3)), condition=labels)
        assert end.evaluations == 64 and len(model.batches) == (32 if small else 64)
        ends.append(end.x)
    torch.testing.assert_close(*ends)


def test_gradients_are_taken_of_the_positive_only() -> None:
    model, x = Labeled(), torch.randn(2, 3)
    guided = ClassifierFreeGuidance(2.0, positive=model, combination=RectifiedGradient())
    with torch.no_grad():
        guided.start(trajectory_of(x))(x, torch.tensor(1.0), torch.tensor([0, 1]))
    assert max(model.batches) == 2 or model.batches.count(4) == 1


def test_a_positive_with_weights_of_its_own_is_shared() -> None:
    """Resolved once for both: Neon's merged network would be two networks, evaluated one after the other."""
    model = Labeled()
    model.scale = torch.nn.Parameter(torch.ones(()))  # Neon merges weights

    class Models:
        main = model

        def snapshot(self, **_: object) -> Denoiser:
            raise AssertionError

    resolved = ClassifierFreeGuidance(2.0, positive=Neon(Main())).resolve(Models())
    assert isinstance(resolved, Guided) and resolved.positive is not model
    x, labels = torch.randn(3, 3), torch.tensor([0, 1, 2])
    with torch.no_grad():
        clean = resolved(x, torch.tensor(1.0), labels)
    assert resolved.positive.batches == [6]  # type: ignore[attr-defined]
    torch.testing.assert_close(clean, 2 * model(x, torch.tensor(1.0), labels) - model(x, torch.tensor(1.0)))
