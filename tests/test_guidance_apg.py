"""APG against its algorithm written out for one sample at a time, and its momentum in each sampler."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_guide.guidance.combinations import AdaptiveProjection
from lightning_guide.samplers import Euler, Heun, Sampler
from tests.branches import GRID, LEVELS, Net, combined, guided, mixtures, start, trajectory_at, walk


def by_hand(update: Tensor, pos: Tensor, eta: float, r: float) -> Tensor:
    """U_orth + eta U_par for each row of `update` (B, *)."""
    rows = []
    for u, p in zip(update, pos, strict=True):
        length = math.sqrt(sum(float(value) ** 2 for value in u.flatten()))
        u = u * min(1.0, r / length)
        direction = p / p.square().sum().sqrt()
        parallel = (u * direction).sum() * direction
        rows.append(u - parallel + eta * parallel)
    return torch.stack(rows)


@pytest.mark.parametrize("shape", [(2,), (3, 4, 5)])
@pytest.mark.parametrize(("eta", "r"), [(0.0, math.inf), (0.4, math.inf), (1.0, 2.0), (0.0, 2.0), (-0.5, 1e-3)])
def test_formula(shape: tuple[int, ...], eta: float, r: float) -> None:
    x, pos, first, second = torch.randn(4, 6, *shape, dtype=torch.float64)
    first[0] = pos[0] - 1e-3 * first[0]  # stays below the threshold
    rule = AdaptiveProjection(eta=eta, norm_threshold=r)
    expected = pos + 2 * by_hand(pos - first, pos, eta, r) - 0.5 * by_hand(pos - second, pos, eta, r)
    torch.testing.assert_close(combined(rule, x, 0.7, pos, (3.0, first), (0.5, second)), expected)


def test_without_the_parallel_part_the_step_is_orthogonal_to_the_positive() -> None:
    x, pos, neg = torch.randn(3, 6, 3, 4, 5)
    step = combined(AdaptiveProjection(), x, 0.7, pos, (4.0, neg)) - pos
    cosine = (step * pos).flatten(1).sum(1) / (step.flatten(1).norm(dim=1) * pos.flatten(1).norm(dim=1))
    assert cosine.abs().max() < 1e-6 and step.flatten(1).norm(dim=1).min() > 1


def test_the_step_is_added_to_the_positive() -> None:
    """Not to the negative, as a widely used package does by default: a tiny step leaves the positive."""
    x, pos, neg = torch.randn(3, 6, 3, 4, 5, dtype=torch.float64)
    out = combined(AdaptiveProjection(norm_threshold=1e-9), x, 0.7, pos, (2.0, neg))
    assert (out - pos).abs().max() < 1e-8 and (out - neg).abs().min() > 1e-6
    along = combined(AdaptiveProjection(eta=0.0), x, 0.7, pos, (3.0, 0.4 * pos))  # a parallel part only
    torch.testing.assert_close(along, pos)


def test_zero_positive_has_no_parallel_part() -> None:
    x, neg = torch.randn(2, 3, 4, dtype=torch.float64)
    pos = torch.zeros_like(x)
    torch.testing.assert_close(combined(AdaptiveProjection(), x, 0.7, pos, (3.0, neg)), -2 * neg)


# Momentum: a walk written out, with sums of its own


def walked(x: Tensor, momentum: float, weights: list[float], heun: bool) -> Tensor:
    """Euler or Heun with a running sum for each negative that advances by the difference of the predictor."""
    pos, *negs = mixtures()
    sums = [torch.zeros_like(x) for _ in negs]

    def clean(x: Tensor, t: float, advance: bool) -> Tensor:
        level = torch.tensor(t, dtype=x.dtype)
        good = pos(x, level)
        total = good
        for i, (neg, weight) in enumerate(zip(negs, weights, strict=True)):
            update = good - neg(x, level) + momentum * sums[i]
            if advance:
                advanced[i] = update
            total = total + (weight - 1) * by_hand(update, good, 0.3, 0.4)
        return total

    for t, t_next in zip(LEVELS, LEVELS[1:], strict=False):
        advanced = list(sums)
        slope = (x - clean(x, t, advance=True)) / t
        ahead = x + (t_next - t) * slope
        if heun and t_next > 0:
            slope = (slope + (ahead - clean(ahead, t_next, advance=False)) / t_next) / 2
        x, sums = x + (t_next - t) * slope, advanced
    return x


@pytest.mark.parametrize("momentum", [-0.75, 0.0, 0.5])
@pytest.mark.parametrize("sampler", [Euler(GRID), Heun(GRID)], ids=["Euler", "Heun"])
def test_the_sum_advances_once_in_a_step_and_each_negative_has_its_own(sampler: Sampler, momentum: float) -> None:
    x, weights = start(2, batch=5), [3.0, 1.5]
    rule = AdaptiveProjection(eta=0.3, norm_threshold=0.4, momentum=momentum)
    end = walk(sampler, guided(mixtures(), weights, rule), x).x
    expected = walked(x, momentum, weights, isinstance(sampler, Heun))
    torch.testing.assert_close(end, expected, rtol=1e-10, atol=1e-10)
    if momentum:
        assert (end - walked(x, 0.0, weights, isinstance(sampler, Heun))).abs().max() > 1e-3


def test_the_sum_keeps_no_graph() -> None:
    """With gradients at each step, the activations of the network do not accumulate along the trajectory."""
    model, x = Net(), torch.randn(2, 3, 4, 4, dtype=torch.float64).requires_grad_()
    predict = guided([model, Net()], [2.0], AdaptiveProjection(momentum=-0.5)).start(trajectory_at(x, 0.7))
    out = predict(x, torch.tensor(0.7).double(), None).clean
    assert model.hidden() is not None and out.requires_grad
    del out
    assert model.hidden() is None


@pytest.mark.parametrize("wrong", [{"norm_threshold": 0.0}, {"momentum": -1.0}, {"momentum": 1.5}, {"eta": math.nan}])
def test_settings_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="AdaptiveProjection needs norm_threshold > 0, momentum between -1 and 1"):
        AdaptiveProjection(**wrong)
