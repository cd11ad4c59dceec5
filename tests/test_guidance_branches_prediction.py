"""Negatives computed from the positive prediction: one evaluation for all of them, next to any other negative."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser, Predict, Prediction, Trajectory, expand
from lightning_guide.guidance import Autoguidance, ClassifierFreeGuidance, Guided, Interval, Main, Unconditional
from lightning_guide.guidance.combinations.base import Branch, Combination, Negatives
from lightning_guide.guidance.negatives import (
    AttentionMask,
    BlurredInput,
    FullMask,
    MaskedSlidingWindow,
    SelfAttentionGuidance,
)
from lightning_guide.networks import DiffusionTransformer
from lightning_guide.noise import KarrasGrid
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.samplers import DPMSolver2M, Euler, Heun
from lightning_guide.seeds import SampleSeeds
from lightning_guide.utils.images import gaussian_blur

SHAPE = (2, 8, 8)
SIGMA = torch.tensor(0.7, dtype=torch.float64)


class Labeled(Denoiser):
    """D(x) = tanh(x + mean over the image + shift of the label) / (1 + sigma), with a record of every call."""

    data_shape, num_classes, sigma_data = SHAPE, 2, 0.5

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.calls: list[Tensor | None] = []

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        self.calls.append(condition)
        shift = 0.0 if condition is None else 0.3 * condition.to(x)[:, None, None, None] + 0.1
        mean = x.mean((1, 2, 3), keepdim=True)
        return (self.scale * x + mean + shift).tanh() / (1 + expand(sigma, x))


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(3, *SHAPE, dtype=torch.float64), torch.tensor([0, 1, 1])


def one_trajectory(x: Tensor) -> Trajectory:
    return Trajectory(x=x, seeds=SampleSeeds(0, range(len(x))), sigma=float(SIGMA))


def blurred(D: Tensor) -> Tensor:
    return gaussian_blur(D, sigma=0.25 * 8, radius=3)


def blur_negative(positive: Denoiser | None = None) -> BlurredInput:
    return BlurredInput(FullMask(), blur=0.25, reach=3 / 8, positive=positive)


def test_the_negative_by_itself_evaluates_its_positive() -> None:
    model, (x, labels) = Labeled(), batch()
    D = model(x, SIGMA, labels)
    expected = model(x + blurred(D) - D, SIGMA, labels) - (blurred(D) - D)
    trajectory = one_trajectory(x)
    prediction = blur_negative(model).start(trajectory)(x, SIGMA, labels)
    torch.testing.assert_close(prediction.clean, expected, rtol=1e-12, atol=1e-12)
    assert trajectory.evaluations == 2 and prediction.noise is None


@pytest.mark.parametrize("order", [[0, 1], [1, 0]], ids=str)
def test_with_classifier_free_guidance_it_adds_up_in_three_evaluations(order: list[int]) -> None:
    """D_c + (w - 1) (D_c - D_none) + (v - 1) (D~_c - D_c(x~))."""
    model, (x, labels) = Labeled(), batch()
    D, none = model(x, SIGMA, labels), model(x, SIGMA)
    perturbed = model(x + blurred(D) - D, SIGMA, labels)
    expected = D + 3 * (D - none) + 0.75 * (blurred(D) - perturbed)
    model.calls.clear()
    negatives: list[Denoiser] = [Unconditional(model), blur_negative(model)]
    weights = [4.0, 1.75]
    trajectory = one_trajectory(x)
    guided = Guided([negatives[i] for i in order], [weights[i] for i in order], positive=model)
    prediction = guided.start(trajectory)(x, SIGMA, labels)
    torch.testing.assert_close(prediction.clean, expected, rtol=1e-12, atol=1e-12)
    assert trajectory.evaluations == 3
    assert sum(condition is None for condition in model.calls) == 1


@pytest.mark.parametrize(("sampler", "per_step"), [(Heun, [6, 4, 2, 1]), (DPMSolver2M, [3, 2, 1, 1])])
def test_only_negatives_that_are_on_are_evaluated(sampler: type, per_step: list[int]) -> None:
    """On levels 4, 3, 2, 1: both at 4, blur alone at 3, none at 2 and 1."""
    negatives = [Unconditional(), blur_negative()]
    weights = [Interval(3.0, 3.5, 9.0), Interval(1.5, 2.5, 9.0)]
    guided = Guided(negatives, weights).resolve(Models(Labeled()))
    counts = [0]
    x, labels = batch()
    walk = sampler(KarrasGrid(4, sigma_min=1.0, sigma_max=4.0, rho=1.0)).steps(
        guided, 4 * x, seeds=SampleSeeds(0, range(3)), condition=labels
    )
    counts += [trajectory.evaluations for trajectory in walk]
    assert [b - a for a, b in zip(counts, counts[1:], strict=False)] == per_step


def test_nested_guidances_apply_to_their_own_positive() -> None:
    """CFG over SAG, with the plain network as its unconditional branch; and SAG over autoguidance."""
    model, bad, (x, labels) = Labeled(), Labeled(0.5), batch()

    def sag(D: Tensor, at_blurred: Tensor, weight: float) -> Tensor:
        return D + (weight - 1) * (blurred(D) - at_blurred)

    D = model(x, SIGMA, labels)
    inner = sag(D, model(x + blurred(D) - D, SIGMA, labels), 1.75)
    expected = model(x, SIGMA) + 3 * (inner - model(x, SIGMA))
    options = {"mask": FullMask(), "blur": 0.25, "reach": 3 / 8}
    over = ClassifierFreeGuidance(
        3.0,
        positive=SelfAttentionGuidance(1.75, positive=model, **options),  # type: ignore[arg-type]
        unconditional=Unconditional(model),
    )
    trajectory = one_trajectory(x)
    prediction = over.start(trajectory)(x, SIGMA, labels)
    torch.testing.assert_close(prediction.clean, expected, rtol=1e-12, atol=1e-12)
    assert trajectory.evaluations == 3

    D = 2 * D - bad(x, SIGMA, labels)
    at = x + blurred(D) - D
    expected = sag(D, 2 * model(at, SIGMA, labels) - bad(at, SIGMA, labels), 1.75)
    nested = SelfAttentionGuidance(1.75, positive=Autoguidance(bad, 2.0), **options)  # type: ignore[arg-type]
    trajectory = one_trajectory(x)
    prediction = nested.resolve(Models(model)).start(trajectory)(x, SIGMA, labels)
    torch.testing.assert_close(prediction.clean, expected, rtol=1e-12, atol=1e-12)
    assert trajectory.evaluations == 4  # two of the inner guidance at x, two at x~: resolving keeps the identity


class Models:
    """The model under evaluation alone."""

    def __init__(self, main: Denoiser) -> None:
        self.main = main

    def snapshot(self, **_: object) -> Denoiser:
        raise AssertionError


def test_a_negative_of_another_model_evaluates_that_one() -> None:
    model, other, (x, labels) = Labeled(), Labeled(0.5), batch()
    D = other(x, SIGMA, labels)
    negative = other(x + blurred(D) - D, SIGMA, labels) - (blurred(D) - D)
    expected = negative + 1.5 * (model(x, SIGMA, labels) - negative)
    trajectory = one_trajectory(x)
    prediction = Guided([blur_negative(other)], [1.5], positive=model).start(trajectory)(x, SIGMA, labels)
    torch.testing.assert_close(prediction.clean, expected, rtol=1e-12, atol=1e-12)
    assert trajectory.evaluations == 3


def test_several_negatives_read_one_positive_prediction() -> None:
    """Self-attention guidance twice, with different thresholds, and masked windows: 1 + 2 + 4 evaluations."""
    network = DiffusionTransformer(SHAPE, channels=16, depth=2, heads=2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model, x, sigma = Preconditioned(network), torch.randn(3, *SHAPE), torch.tensor(0.7)
    negatives = [
        BlurredInput(AttentionMask(), blur=0.25, positive=model),
        BlurredInput(AttentionMask(psi=0.9), blur=0.4, positive=model),
        MaskedSlidingWindow(crop=0.75, positive=model),
    ]
    weights = [1.5, 2.5, 1.8]
    with torch.no_grad():
        D = model(x, sigma)
        expected = D.clone()
        for negative, weight in zip(negatives, weights, strict=True):
            expected += (weight - 1) * (D - negative(x, sigma))
        trajectory = one_trajectory(x)
        guided = Guided(negatives, weights, positive=model).start(trajectory)(x, sigma, None)
    torch.testing.assert_close(guided.clean, expected)
    assert trajectory.evaluations == 7
    assert all(not torch.allclose(negative(x, sigma), D, atol=1e-4) for negative in negatives)


class Backwards(Combination):
    """The negative first; then the positive, and the positive at x + 1."""

    def combine(
        self, positive: Branch, negatives: Negatives, x: Tensor, sigma: Tensor, trajectory: Trajectory
    ) -> Prediction:
        ((weight, negative),) = negatives
        neg = negative(x, sigma).clean
        line = neg + weight * (positive(x, sigma).clean - neg)
        return Prediction(line + positive(x + 1, sigma).clean)


def test_branches_may_be_evaluated_in_any_order() -> None:
    model, (x, labels) = Labeled(), batch()
    plain = Guided([blur_negative(model)], [1.5], positive=model)(x, SIGMA, labels)
    trajectory = one_trajectory(x)
    guided = Guided([blur_negative(model)], [1.5], positive=model, combination=Backwards())
    prediction = guided.start(trajectory)(x, SIGMA, labels)
    torch.testing.assert_close(prediction.clean, plain + model(x + 1, SIGMA, labels))
    assert trajectory.evaluations == 3


class SeparateNoise(Labeled):
    """Has a noise direction separate from its clean estimate."""

    def start(self, trajectory: Trajectory) -> Predict:
        return lambda x, sigma, condition: Prediction(self(x, sigma, condition), 0.1 * x + sigma)


def test_separate_noise_direction_is_that_at_the_blurred_input() -> None:
    model, (x, labels) = SeparateNoise(), batch()
    D = model(x, SIGMA, labels)
    noise, noise_blurred = 0.1 * x + SIGMA, 0.1 * (x + blurred(D) - D) + SIGMA
    prediction = Guided([blur_negative(model)], [1.5], positive=model).start(one_trajectory(x))(x, SIGMA, labels)
    assert prediction.noise is not None
    torch.testing.assert_close(prediction.noise, noise + 0.5 * (noise - noise_blurred))


def test_every_trajectory_starts_afresh_and_main_stays_a_reference() -> None:
    guided = Guided([Unconditional(), blur_negative()], [2.0, 1.5])
    resolved = guided.resolve(Models(Labeled()))
    _, labels = batch()
    first, second = (
        Euler(KarrasGrid(4)).sample(resolved, seeds=SampleSeeds(0, range(3)), condition=labels).x for _ in range(2)
    )
    assert torch.equal(first, second)
    assert isinstance(guided.positive, Main) and isinstance(guided.negatives[1].positive, Main)
