"""Guidance by negatives: identities that hold to the bit, several negatives, nesting, noise."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser, Predict, Prediction, Trajectory
from lightning_guide.distributions.gaussian_mixture import GaussianMixture
from lightning_guide.guidance import (
    Autoguidance,
    ClassifierFreeGuidance,
    CosineWeight,
    Guided,
    Interval,
    Main,
    Unconditional,
    WeightSchedule,
)
from lightning_guide.noise import KarrasGrid
from lightning_guide.samplers import DPMSolver2M, Euler, Heun, Sampler
from lightning_guide.seeds import SampleSeeds

UNCALLABLE = Main()  # a reference raises when it is called


def mixture(shift: float, spread: float, labels: Sequence[int] | None = None) -> GaussianMixture:
    means = torch.tensor([[-1.0, 0.2], [1.0, 0.5], [0.1, -1.0]]) + shift
    return GaussianMixture(means, spread * torch.eye(2).expand(3, 2, 2), [1.0, 2.0, 1.0], labels=labels)


GOOD, BAD, WORSE = mixture(0.0, 0.2), mixture(0.1, 0.5), mixture(-0.2, 1.0)
SIGMAS = [0.05, 0.7, 5.0]


def batch(dtype: torch.dtype = torch.float32) -> Tensor:
    return 2 * torch.randn(16, 2).to(dtype)


# Identities


@pytest.mark.parametrize("sigma", SIGMAS)
def test_weight_one_is_the_positive_to_the_bit_and_the_negatives_are_not_called(sigma: float) -> None:
    x, level = batch(), torch.tensor(sigma)
    off = Interval(3.0, 10.0, 20.0)
    for weights in ([1.0, 1], [off, 1.0], [off, CosineWeight(2.0, sigma_max=0.01)]):
        guided = Guided([UNCALLABLE, UNCALLABLE], weights, positive=GOOD)
        assert torch.equal(guided(x, level), GOOD(x, level))
    with pytest.raises(ValueError, match="Main is a reference"):
        Guided([UNCALLABLE], [1.001], positive=GOOD)(x, level)


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("weights", [[0.0], [0.0, 1.0], [1.0, 0.0]], ids=str)
def test_weight_zero_is_the_negative_to_the_bit(sigma: float, weights: list[float]) -> None:
    x, level = batch(), torch.tensor(sigma)
    negatives = [BAD if weight == 0 else UNCALLABLE for weight in weights]
    assert torch.equal(Guided(negatives, weights, positive=GOOD)(x, level), BAD(x, level))


@pytest.mark.parametrize("weight", [-1.0, 0.3, 1.5, 2.0, 7.5])
def test_negatives_equal_to_the_positive_change_no_bit(weight: float) -> None:
    x, level = batch(), torch.tensor(0.4)
    same = mixture(0.0, 0.2)
    assert torch.equal(Guided([same], [weight], positive=GOOD)(x, level), GOOD(x, level))
    assert torch.equal(Guided([same, same], [weight, 2.0], positive=GOOD)(x, level), GOOD(x, level))


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("weight", [-1.0, 0.3, 0.5, 1.5, 2.0, 7.5])
def test_one_negative_is_the_line(sigma: float, weight: float) -> None:
    x, level = batch(torch.float64), torch.tensor(sigma)
    pos, neg = GOOD(x, level), BAD(x, level)
    guided = Guided([BAD], [weight], positive=GOOD)(x, level)
    torch.testing.assert_close(guided, neg + weight * (pos - neg), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("weights", [[2.0, 1.5], [1.0, 3.0], [0.0, 2.0], [-0.5, 0.25]], ids=str)
def test_several_negatives_add_up(weights: list[float]) -> None:
    x, level = batch(torch.float64), torch.tensor(0.6)
    pos, first, second = (model(x, level) for model in (GOOD, BAD, WORSE))
    expected = pos + (weights[0] - 1) * (pos - first) + (weights[1] - 1) * (pos - second)
    guided = Guided([BAD, WORSE], weights, positive=GOOD)(x, level)
    torch.testing.assert_close(guided, expected, rtol=1e-12, atol=1e-12)
    swapped = Guided([WORSE, BAD], weights[::-1], positive=GOOD)(x, level)
    torch.testing.assert_close(swapped, guided, rtol=1e-12, atol=1e-12)


def test_gradients_flow_through_positive_and_negatives() -> None:
    x, level = batch(torch.float64).requires_grad_(), torch.tensor(0.6)
    guided = Guided([BAD, WORSE], [2.0, 1.5], positive=GOOD)
    (gradient,) = torch.autograd.grad(guided(x, level).square().sum(), x)
    explicit = 2.5 * GOOD(x, level) - BAD(x, level) - 0.5 * WORSE(x, level)
    torch.testing.assert_close(gradient, torch.autograd.grad(explicit.square().sum(), x)[0])


def test_forward_takes_one_level() -> None:
    x, guided = batch(), Guided([BAD], [2.0], positive=GOOD)
    assert torch.equal(guided(x, torch.full((16,), 0.4)), guided(x, torch.tensor(0.4)))
    with pytest.raises(ValueError, match="Guided guides at one noise level at a time, got 16"):
        guided(x, torch.linspace(0.1, 1, 16))
    with pytest.raises(ValueError, match="Guided: sigma is 0.7; expected a tensor"):
        guided(x, 0.7)


@pytest.mark.parametrize(
    ("guided", "message"),
    [
        (Autoguidance(GaussianMixture([[0.0]], [[[1.0]]]), positive=GOOD), "the guider works on x of shape"),
        (ClassifierFreeGuidance(2.0, positive=GOOD), "needs a model with labels or embeddings"),
    ],
)
def test_a_direct_call_refuses_what_a_sampler_refuses(guided: Guided, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        guided(batch(), torch.tensor(0.7))


def test_attributes_are_those_of_the_positive() -> None:
    labeled = mixture(0.0, 0.2, labels=[0, 1, 2])
    guided = Guided([BAD], [2.0], positive=labeled)
    assert (guided.data_shape, guided.num_classes, guided.sigma_data) == ((2,), 3, 0.5)


def test_one_weight_for_each_negative() -> None:
    for negatives, weights in (([BAD], [2.0, 1.0]), ([], [])):
        with pytest.raises(ValueError, match=f"one weight for each negative, got {len(negatives)} and {len(weights)}"):
            Guided(negatives, weights)


# Intervals, nesting, evaluations


def costs(sampler: Sampler, denoiser: Denoiser, condition: Tensor | None = None) -> list[int]:
    """Evaluations of each step."""
    x = 5 * torch.ones(2, 2)
    counts = [0]
    for trajectory in sampler.steps(denoiser, x, seeds=SampleSeeds(0, [0, 1]), condition=condition):
        counts.append(trajectory.evaluations)
    return [after - before for before, after in zip(counts, counts[1:], strict=False)]


@pytest.mark.parametrize(("kind", "factor"), [(Euler, 1), (Heun, 2), (DPMSolver2M, 1)])
def test_interval_is_decided_at_the_predictor_for_both_stages(kind: type[Sampler], factor: int) -> None:
    """Open below, closed above, on levels 5, 4, 3, 2, 1."""
    grid = KarrasGrid(5, sigma_min=1.0, sigma_max=5.0, rho=1.0)
    levels = grid.sigmas().tolist()
    guided = Guided([BAD], [Interval(2.0, levels[3], levels[1])], positive=GOOD)
    plain = [factor] * 4 + [1]
    assert costs(kind(grid), GOOD) == plain
    assert costs(kind(grid), guided) == [plain[0], 2 * plain[1], 2 * plain[2], plain[3], plain[4]]
    from_the_top = Guided([BAD], [Interval(2.0, levels[1], levels[0])], positive=GOOD)
    assert costs(kind(grid), from_the_top) == [2 * plain[0], *plain[1:]]


class Recording(WeightSchedule):
    """Weight 2, and a record of the levels it was called with."""

    def __init__(self) -> None:
        self.sigmas: list[float] = []

    def at(self, sigma: float) -> float:
        self.sigmas.append(sigma)
        return 2.0


def test_schedules_of_nested_guidances_receive_the_level_of_the_predictor() -> None:
    inner, outer = Recording(), Recording()
    guided = Guided([WORSE], [outer], positive=Guided([BAD], [inner], positive=GOOD))
    costs(Heun(KarrasGrid(3, sigma_min=1.0, sigma_max=5.0, rho=1.0)), guided)
    assert inner.sigmas == outer.sigmas == pytest.approx([5, 5, 3, 3, 1])


def test_outside_its_interval_a_guided_sampler_draws_the_same_samples_to_the_bit() -> None:
    seeds = [SampleSeeds(0, range(4)) for _ in range(2)]
    guided = Guided([UNCALLABLE], [Interval(2.0, 100.0, 200.0)], positive=GOOD)
    plain, off = (Heun().sample(model, seeds=s) for model, s in zip((GOOD, guided), seeds, strict=True))
    assert torch.equal(plain.x, off.x) and plain.evaluations == off.evaluations == 63


def test_nested_guidance_counts_and_equals_its_formula() -> None:
    """CFG over autoguidance: both branches of the outer one are guided, four evaluations a call."""
    good, bad = mixture(0.0, 0.2, labels=[0, 1, 1]), mixture(0.1, 0.5, labels=[0, 1, 1])
    inner = Autoguidance(bad, 2.0, positive=good)
    outer = ClassifierFreeGuidance(Interval(3.0, 0.1, 2.0), positive=inner)
    x, level, labels = batch(torch.float64), torch.tensor(0.6), torch.arange(16) % 2
    cond = 2 * good(x, level, labels) - bad(x, level, labels)
    uncond = 2 * good(x, level) - bad(x, level)
    torch.testing.assert_close(outer(x, level, labels), uncond + 3 * (cond - uncond))
    grid = KarrasGrid(4, sigma_min=0.5, sigma_max=3.5, rho=1.0)  # 3.5, 2.5, 1.5, 0.5
    assert costs(Heun(grid), outer, labels[:2]) == [4, 4, 8, 4]
    trajectory = Heun(grid).sample(outer, seeds=SampleSeeds(0, [0, 1]), condition=labels[:2])
    assert trajectory.evaluations == 20


class Fresh(GaussianMixture):
    """Has a state in each trajectory: the number of calls so far is added to the clean estimate."""

    def start(self, trajectory: Trajectory) -> Predict:
        calls = []

        def predict(x: Tensor, sigma: Tensor, condition: Tensor | None) -> Prediction:
            calls.append(1)
            return Prediction(self(x, sigma, condition) + len(calls))

        return predict


def test_every_trajectory_has_new_guidance_state() -> None:
    fresh = Fresh(GOOD.means, 0.2 * torch.eye(2).expand(3, 2, 2))
    guided = Guided([BAD], [2.0], positive=Unconditional(Guided([WORSE], [2.0], positive=fresh)))
    first, second = (Euler().sample(guided, seeds=SampleSeeds(0, range(3))).x for _ in range(2))
    assert torch.equal(first, second)


# A separate noise direction is combined like the clean estimate


class ShiftedNoise(GaussianMixture):
    """Noise direction from a shifted x."""

    def start(self, trajectory: Trajectory) -> Predict:
        return lambda x, sigma, condition: Prediction(self(x, sigma), x * 0.1 + sigma)


@pytest.mark.parametrize("which", ["positive", "negative", "second"])
def test_noise_is_combined_like_the_clean_estimate(which: str) -> None:
    models: dict[str, GaussianMixture] = {"positive": GOOD, "negative": BAD, "second": WORSE}
    models[which] = ShiftedNoise(models[which].means, 0.3 * torch.eye(2).expand(3, 2, 2))
    x, sigma = batch(torch.float64), torch.tensor(0.6, dtype=torch.float64)
    guided = Guided([models["negative"], models["second"]], [2.0, 1.5], positive=models["positive"])
    trajectory = Trajectory(x=x, seeds=SampleSeeds(0, range(16)), sigma=0.6)
    prediction = guided.start(trajectory)(x, sigma, None)
    pos, neg, second = (model.start(trajectory)(x, sigma, None) for model in models.values())
    clean = 2.5 * pos.clean - neg.clean - 0.5 * second.clean
    noise = sum(c * p.direction(x, sigma) for c, p in ((2.5, pos), (-1.0, neg), (-0.5, second)))
    torch.testing.assert_close(prediction.clean, clean)
    assert prediction.noise is not None
    torch.testing.assert_close(prediction.noise, noise)


def test_noise_stays_implied_without_a_separate_direction() -> None:
    trajectory = Trajectory(x=batch(), seeds=SampleSeeds(0, range(16)), sigma=0.6)
    prediction = Guided([BAD], [2.0], positive=GOOD).start(trajectory)(trajectory.x, torch.tensor(0.6), None)
    assert prediction.noise is None


def test_weights_are_finite() -> None:
    with pytest.raises(ValueError, match="Guided needs finite weights"):
        Guided([Main()], [float("nan")])
