"""Objectives as energies and energies as objectives, with the same samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_guide.distributions.gaussian_mixture import GaussianMixture
from lightning_guide.evaluation import Evaluation
from lightning_guide.guidance import LookAhead
from lightning_guide.guidance.training_free import LossGuidedDiffusion, UniversalGuidance
from lightning_guide.networks.classifiers import SmallClassifier
from lightning_guide.noise import KarrasGrid
from lightning_guide.objectives import (
    ClassLabel,
    ClassLogProbability,
    Decoded,
    Distance,
    Downsampled,
    Integrated,
    Linear,
    Measurement,
    NegativeDistance,
    NegativeEnergy,
    NegativeReward,
    Objective,
    Quadratic,
    SquaredDistance,
    WeightedSum,
)
from lightning_guide.optimization import Rounds
from lightning_guide.pretrained import RunNetwork
from lightning_guide.samplers import Euler
from lightning_guide.seeds import SampleSeeds
from lightning_guide.snapshots import SnapshotStore
from lightning_guide.utils.recipe import build

PRIOR = GaussianMixture([[1.0, 0.0], [-1.0, 0.5]], [[[0.2, 0.0], [0.0, 0.2]], [[0.2, 0.05], [0.05, 0.3]]], [0.5, 0.5])
SAMPLER = Euler(KarrasGrid(8, sigma_min=0.05, sigma_max=10.0))
AWAY = [0.3, -2.0]


def draw(guide: Any) -> torch.Tensor:
    seeds = SampleSeeds(0, range(5))
    *_, end = SAMPLER.steps(guide, SAMPLER.initial(PRIOR, seeds).double(), seeds=seeds)
    return end.x


@pytest.mark.parametrize("method", [UniversalGuidance, LossGuidedDiffusion])
def test_objective_guides_as_the_equivalent_energy(method: Any) -> None:
    reward = NegativeReward(NegativeDistance(AWAY, top=5.0, slope=0.5), weight=3.0)  # -3 (5 - |x - b| / 2)
    loss = Distance(AWAY)
    x = torch.randn(4, 2, dtype=torch.float64)
    torch.testing.assert_close(reward(x), 1.5 * loss(x) - 15)
    guided = draw(method(reward, 1.0, positive=PRIOR))
    assert (guided - draw(PRIOR)).abs().max() > 0.1
    if method is UniversalGuidance:  # linear in the loss
        torch.testing.assert_close(guided, draw(method(loss, 1.5, positive=PRIOR)), rtol=1e-9, atol=1e-9)


def test_energy_has_value_and_gradient_of_the_equivalent_objective() -> None:
    reward, loss = Linear([0.5, -2.0]), NegativeEnergy(NegativeReward(Linear([0.5, -2.0])))
    at = torch.randn(5, 2, dtype=torch.float64)
    for one, other in zip(reward.value_and_gradient(at), loss.value_and_gradient(at), strict=True):
        torch.testing.assert_close(one, other)
    value, gradient = NegativeEnergy(SquaredDistance([1.0, 2.0], 2.0)).value_and_gradient(at)
    gap = torch.tensor([1.0, 2.0]) - at
    torch.testing.assert_close(value, -gap.square().sum(1) / 8)
    torch.testing.assert_close(gradient, gap / 4)
    guided = draw(LookAhead(positive=PRIOR).toward(gradient, value + 1))
    assert guided.isfinite().all() and (guided - draw(PRIOR)).abs().max() > 1e-3


def test_class_log_probability_equals_class_label(tmp_path: Path) -> None:
    network = SmallClassifier([1, 8, 8], num_classes=4, widths=[8, 16])
    store = SnapshotStore(tmp_path / "snapshots")
    store.save(network.state_dict(), images=8, sigma_rel=0.0, recipe=network.recipe, planned_images=8)
    x = torch.randn(6, 1, 8, 8)
    reward, loss = ClassLogProbability(str(tmp_path), 2), ClassLabel(RunNetwork(str(tmp_path)), 2)
    torch.testing.assert_close(NegativeReward(reward)(x), loss(x))
    torch.testing.assert_close(reward(x), loss(x))
    torch.testing.assert_close(NegativeEnergy(loss).value(x), reward.value(x))
    again = build(NegativeEnergy(loss).recipe)
    torch.testing.assert_close(again.value(x), reward.value(x))


@pytest.mark.parametrize("objective", [Linear([0.5, -2.0]), Quadratic([1.0, 0.0]), NegativeDistance(AWAY)])
def test_every_objective_is_an_energy(objective: Objective) -> None:
    x = torch.randn(4, 2, dtype=torch.float64)
    assert torch.equal(objective(x), -objective.value(x)) and objective.num_classes == 0
    both = WeightedSum([objective, Distance(AWAY)], [3.0, 1.0])
    torch.testing.assert_close(both(x), Distance(AWAY)(x) - 3 * objective.value(x))
    assert torch.equal(NegativeReward(objective, weight=3.0)(x), 3 * objective(x))
    guided = draw(UniversalGuidance(objective, 0.3, positive=PRIOR))
    assert torch.equal(guided, draw(UniversalGuidance(NegativeReward(objective), 0.3, positive=PRIOR)))


def test_every_energy_without_labels_is_an_objective() -> None:
    x, target = torch.randn(4, 2, dtype=torch.float64), torch.tensor(AWAY, dtype=torch.float64)
    energy = SquaredDistance(AWAY, 2.0)
    value, gradient = energy.value_and_gradient(x)
    torch.testing.assert_close(value, -(x - target).square().sum(1) / 8)
    torch.testing.assert_close(gradient, (target - x) / 4)
    direction = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(energy.curvature(x[:1], direction), -direction / 4)
    assert torch.equal(Decoded(energy, nn.Identity()).value(x), value)


def test_transformed_energies_keep_labels_and_trajectories() -> None:
    label = ClassLabel(SmallClassifier([1, 8, 8], num_classes=4, widths=[8]))
    assert Integrated(label).num_classes == Decoded(label, nn.Identity()).num_classes == 4
    assert Integrated(Distance(AWAY)).num_classes == 0


def test_energies_of_labels_or_trajectories_are_not_objectives() -> None:
    with pytest.raises(ValueError, match="an objective has no labels, but ClassLabel reads them"):
        NegativeEnergy(ClassLabel(SmallClassifier([1, 8, 8], num_classes=4, widths=[8])))
    label = ClassLabel(SmallClassifier([1, 8, 8], num_classes=4, widths=[8]))
    with pytest.raises(ValueError, match="an objective has no labels, but ClassLabel reads them"):
        Rounds(label, Evaluation(guidance=LookAhead()))
    measured = NegativeEnergy(Measurement(Downsampled(2), torch.zeros(1, 1, 4, 4)))
    with pytest.raises(ValueError, match="needs a trajectory"):
        measured.value(torch.zeros(1, 1, 4, 4))
