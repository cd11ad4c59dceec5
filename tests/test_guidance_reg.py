"""REG against a Jacobian, its cost, and its graph, which is freed before the negatives are evaluated."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_guide.denoiser import Predict, Prediction, Trajectory
from lightning_guide.distributions.gaussian_mixture import GaussianMixture
from lightning_guide.guidance import ClassifierFreeGuidance, Unconditional
from lightning_guide.guidance.combinations import AdaptiveProjection, RectifiedGradient
from lightning_guide.samplers import Euler, Sampler
from tests.branches import GRID, SAMPLERS, Net, constant_branch, guided, mixtures, start, trajectory_at, walk

LEVEL = torch.tensor(0.7, dtype=torch.float64)


def column_sums(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """sum_i dD_i / dx_j for each row of `x` (B, *), by central differences."""
    rows = []
    for row in x:
        flat, step = row.flatten(), 1e-6
        ends = []
        for j in range(len(flat)):
            ahead, behind = flat.clone(), flat.clone()
            ahead[j] += step
            behind[j] -= step
            pair = torch.stack([ahead, behind]).reshape(2, *row.shape)
            up, down = model(pair).flatten(1).sum(1)
            ends.append((up - down) / (2 * step))
        rows.append(torch.stack(ends).reshape(row.shape))
    return torch.stack(rows)


@pytest.mark.parametrize("strength", [1.0, 0.25])
def test_formula(strength: float) -> None:
    pos, first, second = mixtures()
    x = torch.randn(6, 2, dtype=torch.float64)
    g = column_sums(lambda x: pos(x, LEVEL), x)
    factor = 1 + strength * (g - 1)
    good = pos(x, LEVEL)
    expected = good + factor * (2.0 * (good - first(x, LEVEL)) - 0.6 * (good - second(x, LEVEL)))
    rule = RectifiedGradient(strength=strength)
    with torch.no_grad():
        out = guided([pos, first, second], [3.0, 0.4], rule)(x, LEVEL)
    torch.testing.assert_close(out, expected, rtol=1e-7, atol=1e-8)


def test_formula_on_images() -> None:
    model, x, neg = Net(), *torch.randn(2, 2, 3, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        g, pos = column_sums(lambda x: model(x, LEVEL), x), model(x, LEVEL)
        branches = (lambda x, sigma: Prediction(model(x, sigma)), [(3.0, constant_branch(neg))])
        out = RectifiedGradient().combine(*branches, x, LEVEL, trajectory_at(x, 0.7))
    torch.testing.assert_close(out.clean, pos + 2 * g * (pos - neg), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_counts_its_gradient_as_often_as_the_positive(sampler: Sampler) -> None:
    models, x = mixtures(), start(2)
    once = walk(sampler, models[0], x).evaluations
    assert walk(sampler, guided(models, [2.0, 1.0], RectifiedGradient()), x).evaluations == 3 * once
    assert walk(sampler, guided(models, [2.0, 1.5], RectifiedGradient()), x).evaluations == 4 * once
    assert walk(sampler, guided(models, [1.0, 1.0], RectifiedGradient()), x).evaluations == once
    assert walk(sampler, guided(models, [2.0, 1.5], RectifiedGradient(strength=0.0)), x).evaluations == 3 * once
    nested = guided([guided(models[:2], [2.0]), models[2]], [2.0], RectifiedGradient())
    assert walk(sampler, nested, x).evaluations == (2 + 2 + 1) * once


@pytest.mark.parametrize("batch", [2, 40])
def test_a_negative_of_the_same_network_costs_no_more(batch: int) -> None:
    labeled = GaussianMixture(mixtures()[0].means, 0.2 * torch.eye(2).expand(3, 2, 2), labels=[0, 1, 2])
    x, labels = start(2, batch=batch), torch.arange(batch) % 3
    denoiser = ClassifierFreeGuidance(2.0, positive=labeled, combination=RectifiedGradient())
    end = walk(Euler(GRID), denoiser, x, labels)
    sequential = guided([labeled, Unconditional(labeled)], [2.0], RectifiedGradient())
    assert end.evaluations == 3 * 6
    torch.testing.assert_close(end.x, walk(Euler(GRID), sequential, x, labels).x)


def test_the_graph_is_freed_after_the_gradient() -> None:
    """Under no_grad, with parameters that require gradients, as in a validation loop."""
    model, noise, x = Net(), Net(), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    activations = []

    def positive(x: Tensor, sigma: Tensor) -> Prediction:
        return Prediction(model(x, sigma), noise(x, sigma))

    def negative(x: Tensor, sigma: Tensor) -> Prediction:
        activations.extend([model.hidden(), noise.hidden()])
        assert not torch.is_grad_enabled()
        return Prediction(x / 2)

    with torch.no_grad():
        out = RectifiedGradient().combine(positive, [(3.0, negative)], x, LEVEL, trajectory_at(x, 0.7))
    assert activations == [None, None], "activations of the positive are still there"
    assert out.clean.grad_fn is None and not out.clean.requires_grad and not x.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


class SeparateNoise(Net):
    """Has a separate noise direction."""

    def start(self, trajectory: Trajectory) -> Predict:
        return lambda x, sigma, condition: Prediction(self(x, sigma), 0.1 * x)


def test_separate_noise_direction_changes_with_the_push() -> None:
    model, neg = SeparateNoise(), Net()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        out = guided([model, neg], [2.0], RectifiedGradient()).start(trajectory_at(x, 0.7))(x, LEVEL, None)
        push = column_sums(lambda x: model(x, LEVEL), x) * (model(x, LEVEL) - neg(x, LEVEL))
    beyond = 0.1 * x - (x - model(x, LEVEL)) / LEVEL
    assert out.noise is not None and not out.noise.requires_grad
    torch.testing.assert_close(out.noise, 0.1 * x - push / LEVEL + beyond)


@pytest.mark.parametrize("momentum", [0.0, -0.5])
def test_a_stateful_positive_treats_earlier_steps_as_constants(momentum: float) -> None:
    """APG inside, whose sum lives as long as the trajectory, at the second step of Euler."""
    models, x = mixtures(), torch.randn(4, 2, dtype=torch.float64)
    rule = AdaptiveProjection(eta=1.0, momentum=momentum)
    denoiser = guided([guided(models[:2], [2.0], rule), models[2]], [3.0], RectifiedGradient())
    before, after, *_ = [
        trajectory.x for trajectory in Euler(GRID).steps(denoiser, x, seeds=trajectory_at(x, 1.0).seeds)
    ]
    (good, bad, worse), levels = models, GRID.sigmas()
    remembered = good(x, levels[0]) - bad(x, levels[0])

    def line(x: Tensor) -> Tensor:
        return 2 * good(x, levels[1]) - bad(x, levels[1])

    inner = line(before) + momentum * remembered
    clean = inner + 2 * column_sums(line, before) * (inner - worse(before, levels[1]))
    expected = clean + levels[2] / levels[1] * (before - clean)
    torch.testing.assert_close(after, expected, rtol=1e-7, atol=1e-7)


def test_gradients_through_the_rule_treat_g_as_a_constant() -> None:
    pos, neg = mixtures()[:2]
    x = torch.randn(6, 2, dtype=torch.float64).requires_grad_()
    out = guided([pos, neg], [3.0], RectifiedGradient())(x, LEVEL)
    (gradient,) = torch.autograd.grad(out.square().sum(), x)
    g = column_sums(lambda x: pos(x, LEVEL), x.detach())
    explicit = pos(x, LEVEL) + 2 * g * (pos(x, LEVEL) - neg(x, LEVEL))
    (expected,) = torch.autograd.grad(explicit.square().sum(), x)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-7)


def test_a_positive_without_gradients_is_refused() -> None:
    model, x = Net(), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    blind = (constant_branch(x), lambda x, sigma: Prediction(model.first(torch.zeros_like(x))))
    for positive in blind:
        with pytest.raises(ValueError, match="needs a positive that can be differentiated by x"):
            RectifiedGradient().combine(positive, [(2.0, constant_branch(x))], x, LEVEL, trajectory_at(x, 0.7))


def test_a_network_that_evaluates_under_no_grad_is_refused() -> None:
    class Closed(Net):
        def start(self, trajectory: Trajectory) -> Predict:
            return torch.no_grad()(super().start(trajectory))

    with pytest.raises(ValueError, match="needs a positive that can be differentiated by x"):
        walk(Euler(GRID), guided([Closed(), Net()], [2.0], RectifiedGradient()), start(3, 4, 4))


@pytest.mark.parametrize("strength", [-0.1, 1.1])
def test_strength_out_of_range(strength: float) -> None:
    with pytest.raises(ValueError, match="RectifiedGradient needs a strength between 0"):
        RectifiedGradient(strength=strength)
