"""Conditions: independent ones for the negative, annealed ones for the positive."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lightning_guide.denoiser import Denoiser, Trajectory
from lightning_guide.guidance import ClassifierFreeGuidance, Guided, Unconditional
from lightning_guide.guidance.negatives import (
    AnnealedCondition,
    ConditionAnnealedGuidance,
    GaussianCondition,
    IndependentConditionGuidance,
    RandomCondition,
)
from lightning_guide.guidance.perturbation import Perturbed
from lightning_guide.seeds import SampleSeeds
from tests.small_networks import LABELS, NETWORKS, SIGMA, noisy_images, trajectory, unet


class RecordsLabels(Denoiser):
    """D is the label, everywhere; records the conditions."""

    data_shape, sigma_data = (1, 8, 8), 0.5

    def __init__(self, num_classes: int = 4) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conditions: list[Tensor | None] = []

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        self.conditions.append(condition)
        assert condition is not None
        return condition[:, None, None, None].expand_as(x).to(x)


class Fixed(nn.Module):
    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, *_: Tensor) -> Tensor:
        return self.value


def run(model: nn.Module, labels: Tensor | None = LABELS) -> Tensor:
    with torch.no_grad():
        return model(noisy_images(), SIGMA, labels)


# Independent condition guidance


def test_the_negative_has_another_class_at_each_call() -> None:
    model = RecordsLabels()
    place = trajectory(range(50))
    predict = IndependentConditionGuidance(2.0, positive=model).start(place)
    labels = torch.arange(50) % 4
    for _ in range(8):
        x = predict(place.x, SIGMA, labels).clean[:, 0, 0, 0]
        own, drawn = model.conditions[-2:]
        assert own is labels and drawn is not None
        torch.testing.assert_close(x, 2.0 * labels - drawn)
    draws = torch.stack([each for each in model.conditions[1::2] if each is not None])  # (8, 50)
    assert len(draws.unique(dim=0)) == 8 and len(draws.unique(dim=1)[0]) > 40
    assert draws.min() == 0 and draws.max() == 3
    counts = draws.flatten().bincount()
    assert all(70 < count < 130 for count in counts)  # 100 on average, standard deviation 8.7
    agree = float((draws == labels).double().mean())
    assert agree == pytest.approx(0.25, abs=0.09)  # independent of the label: neither correlated nor anticorrelated


def test_a_draw_belongs_to_its_sample() -> None:
    together, alone = RecordsLabels(), RecordsLabels()
    for model, indices in ((together, range(6)), (alone, [4])):
        predict = RandomCondition(model).start(trajectory(indices))
        for _ in range(5):
            predict(noisy_images(len(indices)), SIGMA, None)
    both = zip(together.conditions, alone.conditions, strict=True)
    assert all(a is not None and b is not None and a[4] == b[0] for a, b in both)


def test_a_network_that_ignores_labels_is_not_guided() -> None:
    model = unet(label_balance=0.0)
    torch.testing.assert_close(run(IndependentConditionGuidance(3.0, positive=model)), run(model))
    listening = unet()
    assert not torch.allclose(run(IndependentConditionGuidance(3.0, positive=listening)), run(listening))


@pytest.mark.parametrize("kind", NETWORKS)
def test_models_without_labels_are_refused(kind: str) -> None:
    class Models:
        main = NETWORKS[kind](num_classes=0)

        def snapshot(self, **_: object) -> Denoiser:
            return self.main

    with pytest.raises(ValueError, match=r"labels or prompts; this model has neither \(num_classes=0\)"):
        IndependentConditionGuidance().resolve(Models())
    with pytest.raises(ValueError, match="RandomCondition takes its condition from labels or prompts; this"):
        run(IndependentConditionGuidance(positive=Models.main), None)
    with pytest.raises(ValueError, match="AnnealedCondition acts on the embedding of labels or texts; this network"):
        Perturbed([AnnealedCondition()]).resolve(Models())
    with pytest.raises(ValueError, match="GaussianCondition acts on the embedding of labels or texts; this network"):
        Perturbed([GaussianCondition()]).resolve(Models())


def test_the_gaussian_condition_has_the_size_of_the_embedding() -> None:
    y = 3 * torch.randn(3, 7, dtype=torch.float64) + 1
    n = trajectory().seeds.normal("gaussian condition", (7,)).double()
    deviation = (y - y.mean(1, keepdim=True)).square().mean(1, keepdim=True).sqrt()
    drawn = GaussianCondition().replace(Fixed(y), trajectory())(torch.zeros(3, 4))
    torch.testing.assert_close(drawn, deviation * n, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_gaussian_condition_reaches_the_network(kind: str) -> None:
    model = NETWORKS[kind]()
    negative = Perturbed([GaussianCondition()], positive=model)
    results = [run(negative), run(model), run(model, None)]
    assert not any(torch.allclose(results[i], results[j]) for i in range(3) for j in range(i))


# Annealed condition


@pytest.mark.parametrize(("scale", "mixing"), [(0.25, 1.0), (0.15, 0.6), (1.0, 0.0)])
@pytest.mark.parametrize(
    ("step", "steps", "gamma"),
    [(0, 20, 0.0), (1, 10, 0.0), (2, 8, 0.5), (7, 20, 5 / 6), (8, 20, 1.0), (9, 20, 1.0)],
    ids=["t=1", "t=.9", "t=.75", "t=.65", "t=.6", "t=.55"],
)
def test_the_formula_of_annealing(step: int, steps: int, gamma: float, scale: float, mixing: float) -> None:
    place = trajectory(step=step, steps=steps)
    y = 2 * torch.randn(3, 9, dtype=torch.float64) + 0.5
    result = AnnealedCondition(scale, tau=(0.6, 0.9), mixing=mixing).replace(Fixed(y), place)(torch.zeros(3, 4))
    if gamma == 1:
        assert torch.equal(result, y)
        return
    n = trajectory().seeds.normal("annealed condition", (9,)).double()
    expected = torch.empty_like(y)
    for i in range(3):
        noisy = math.sqrt(gamma) * y[i] + scale * math.sqrt(1 - gamma) * n[i]
        rescaled = (noisy - noisy.mean()) / noisy.std() * y[i].std() + y[i].mean()
        expected[i] = mixing * rescaled + (1 - mixing) * noisy
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)


def test_rescaled_embeddings_keep_mean_and_deviation() -> None:
    y = 2 * torch.randn(3, 9, dtype=torch.float64) + 0.5
    result = AnnealedCondition(0.5).replace(Fixed(y), trajectory(step=1))(torch.zeros(3, 4))
    torch.testing.assert_close(result.mean(1), y.mean(1))
    torch.testing.assert_close(result.std(1), y.std(1))
    assert not torch.allclose(result, y)


@pytest.mark.parametrize("kind", NETWORKS)
def test_annealing_ends_at_the_condition_itself(kind: str) -> None:
    model = NETWORKS[kind]()
    annealed = Perturbed([AnnealedCondition()], positive=model)
    late, early = (annealed.network(trajectory(step=step, steps=10)) for step in (5, 0))
    assert torch.equal(run(late), run(model))
    assert not torch.allclose(run(early), run(model))
    assert torch.equal(run(early, None), run(model, None))  # no condition, an embedding of zeros, stays zero


def test_the_preset_is_classifier_free_guidance_with_an_annealed_positive() -> None:
    model = unet()
    place = {"step": 1, "steps": 10}
    annealed = Perturbed([AnnealedCondition(0.25, tau=(0.6, 0.95), mixing=0.8)], positive=model)
    preset = ConditionAnnealedGuidance(2.0, scale=0.25, tau=(0.6, 0.95), mixing=0.8, positive=model)
    by_hand = Guided([Unconditional(model)], [2.0], positive=annealed)

    def predicted(denoiser: Denoiser, **where: int) -> Tensor:
        with torch.no_grad():
            return denoiser.start(trajectory(**where))(noisy_images(), SIGMA, LABELS).clean  # type: ignore[arg-type]

    assert torch.equal(predicted(preset, **place), predicted(by_hand, **place))
    plain = ClassifierFreeGuidance(2.0, positive=model)
    torch.testing.assert_close(predicted(preset, step=6, steps=10), predicted(plain, step=6, steps=10))
    assert not torch.allclose(predicted(preset, **place), predicted(plain, **place))
    one = ConditionAnnealedGuidance(1.0, positive=model, unconditional=RecordsLabels())
    place_seen = Trajectory(x=noisy_images(), seeds=SampleSeeds(0, range(3)), sigma=0.7)
    one.start(place_seen)(noisy_images(), SIGMA, LABELS)
    assert place_seen.evaluations == 1


def test_settings_of_annealing_out_of_range_are_refused() -> None:
    for options in ({"scale": -1.0}, {"tau": (0.9, 0.5)}, {"tau": (0.5, 0.5)}, {"mixing": 1.5}, {"scale": math.inf}):
        with pytest.raises(ValueError, match="CADS needs a finite scale >= 0, 0 <= tau_1 < tau_2 and mixing"):
            AnnealedCondition(**options)  # type: ignore[arg-type]
