"""TCFG against the singular value decomposition, and where that has no unique answer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_guide.distributions.gaussian_mixture import GaussianMixture
from lightning_guide.guidance import ClassifierFreeGuidance
from lightning_guide.guidance.combinations import Tangential
from lightning_guide.samplers import Sampler
from tests.branches import SAMPLERS, combined, start, walk

SIGMA = 0.7


def damped(pos: Tensor, neg: Tensor, x: Tensor, strength: float = 1.0) -> Tensor:
    """eps_neg without its component along the second right singular vector, each row by torch's decomposition."""
    rows = []
    for row in range(len(x)):
        noises = torch.stack([((x - clean)[row] / SIGMA).flatten() for clean in (pos, neg)])
        second = torch.linalg.svd(noises, full_matrices=False).Vh[1]
        rows.append((noises[1] - strength * (noises[1] @ second) * second).reshape(x.shape[1:]))
    return torch.stack(rows)


@pytest.mark.parametrize("strength", [1.0, 0.3])
@pytest.mark.parametrize("shape", [(2,), (3, 4, 5)])
@pytest.mark.parametrize("near", [1.0, 1e-3])
def test_formula(shape: tuple[int, ...], strength: float, near: float) -> None:
    x, pos, *others = torch.randn(4, 6, *shape, dtype=torch.float64)
    first, second = (pos + near * other for other in others)
    eps = (x - pos) / SIGMA
    for weight, neg in ((3.0, first), (0.4, second)):
        eps = eps + (weight - 1) * ((x - pos) / SIGMA - damped(pos, neg, x, strength))
    out = combined(Tangential(strength=strength), x, SIGMA, pos, (3.0, first), (0.4, second))
    torch.testing.assert_close(out, x - SIGMA * eps, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("near", [1e-2, 1e-4])
def test_float32_is_as_good_as_the_difference_allows(near: float) -> None:
    x, pos, other = torch.randn(3, 6, 3, 16, 16)
    neg = pos + near * other
    exact = combined(Tangential(), x.double(), SIGMA, pos.double(), (3.0, neg.double())) - pos.double()
    step = combined(Tangential(), x, SIGMA, pos, (3.0, neg)).double() - pos.double()
    assert (step - exact).abs().max() < 2e-6 < 0.1 * exact.abs().max()


def test_a_small_difference_keeps_half_of_its_orthogonal_part() -> None:
    """First order in the difference: the parallel part stays, the orthogonal one is halved."""
    x, pos, other = torch.randn(3, 4, 3, 5, 5, dtype=torch.float64)
    eps = (x - pos) / SIGMA
    other -= (
        (other * eps).flatten(1).sum(1).reshape(-1, 1, 1, 1) / eps.flatten(1).square().sum(1).reshape(-1, 1, 1, 1) * eps
    )
    for direction, kept in ((other, 0.5), (eps, 1.0)):
        out = combined(Tangential(), x, SIGMA, pos, (2.0, pos + 1e-6 * direction))
        torch.testing.assert_close((out - pos) / 1e-6, -kept * direction, rtol=1e-4, atol=1e-4)


def test_branches_without_a_second_direction() -> None:
    x, pos = torch.randn(2, 6, 3, 4, 5, dtype=torch.float64)
    eps = (x - pos) / SIGMA
    for factor in (1.0, 0.5, -0.5, -1.0, 0.0, 3.0):  # parallel: the plain rule
        neg = x - SIGMA * factor * eps
        out = combined(Tangential(), x, SIGMA, pos, (3.0, neg))
        torch.testing.assert_close(out, pos + 2 * (pos - neg), rtol=1e-10, atol=1e-12)
    zero = combined(Tangential(), x, SIGMA, x, (3.0, pos))  # eps_pos = 0: the negative is parallel to itself
    torch.testing.assert_close(zero, x + 2 * (x - pos))
    assert torch.equal(combined(Tangential(), x, SIGMA, x, (3.0, x)), x)


def test_orthogonal_branches_of_one_length_drop_the_negative() -> None:
    x = torch.zeros(1, 2, dtype=torch.float64)
    pos, neg = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[0.0, 1.0]]).double()
    torch.testing.assert_close(combined(Tangential(), x, SIGMA, pos, (3.0, neg)), 3 * pos)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_usable_with_classifier_free_guidance(sampler: Sampler) -> None:
    """A widely used package raises an AttributeError before the first step."""
    means = torch.tensor([[-1.0, 0.2], [1.0, 0.5], [0.1, -1.0]])
    model = GaussianMixture(means, 0.2 * torch.eye(2).expand(3, 2, 2), labels=[0, 1, 2])
    x, labels = start(2, batch=4), torch.tensor([0, 1, 2, -1])
    ends = [
        walk(sampler, ClassifierFreeGuidance(3.0, positive=model, combination=rule), x, labels).x
        for rule in (Tangential(), None)
    ]
    assert bool(ends[0].isfinite().all()) and (ends[0] - ends[1])[:3].abs().amax(1).min() > 1e-3
    torch.testing.assert_close(ends[0][3], ends[1][3])  # no label: unguided


@pytest.mark.parametrize("strength", [-0.1, 1.1])
def test_strength_out_of_range(strength: float) -> None:
    with pytest.raises(ValueError, match="Tangential needs a strength between 0"):
        Tangential(strength=strength)
