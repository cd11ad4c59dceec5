"""Fractal tree distribution: published statistics and accuracy of the fast formulas."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_guide.distributions.fractal import FractalTree
from lightning_guide.utils.recipe import build

SCALE = torch.tensor([1.3136, 1.3844], dtype=torch.float64)


@pytest.fixture(scope="module")
def tree() -> FractalTree:
    """Class A."""
    return FractalTree("A")


def exact_moments(tree: FractalTree) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (2,) and standard deviation (2,) of the mixture, in closed form."""
    means = tree.starts[:, None] + tree.fractions[:, None] * tree.vectors[:, None]
    weights = tree.branch_weights / len(tree.fractions)
    mean = torch.einsum("b,bji->i", weights, means)
    spread = torch.einsum("b,bji->i", weights, (means - mean) ** 2)
    within = torch.einsum("b,bii->i", tree.branch_weights, tree.covariances)
    return mean, (spread + within).sqrt()


def test_numbers_of_branches_and_components(tree: FractalTree) -> None:
    both = FractalTree("AB")
    assert (tree.branches, tree.components) == (127, 1016)
    assert (both.branches, both.components) == (254, 2032)
    assert FractalTree("B", depth=3).branches == 7


def test_published_moments(tree: FractalTree) -> None:
    mean, std = exact_moments(tree)
    torch.testing.assert_close(mean, torch.tensor([0.372, 0.365]).double(), rtol=0.0, atol=5e-4)
    torch.testing.assert_close(std, torch.tensor([0.333, 0.341]).double(), rtol=0.0, atol=5.1e-4)
    mean, std = exact_moments(FractalTree("AB"))
    torch.testing.assert_close(mean, torch.zeros(2).double(), rtol=0.0, atol=1e-3)
    torch.testing.assert_close(std, torch.tensor([0.5, 0.5]).double(), rtol=0.0, atol=1e-3)


def test_samples_have_the_moments_and_the_extent(tree: FractalTree, generator: torch.Generator) -> None:
    x, component = tree.sample(50_000, generator)
    mean, std = exact_moments(tree)
    torch.testing.assert_close(x.mean(0).double(), mean, rtol=0.0, atol=5e-3)
    torch.testing.assert_close(x.std(0).double(), std, rtol=0.0, atol=5e-3)
    assert torch.allclose(x.amin(0), torch.tensor([-0.49, -0.63]), atol=0.05)
    assert torch.allclose(x.amax(0), torch.tensor([1.29, 1.47]), atol=0.05)
    share = torch.bincount(component // 8, minlength=127).double() / len(x)
    torch.testing.assert_close(share, tree.branch_weights, rtol=0.0, atol=6e-3)
    # The outline of the paper's figure, ln p = -2.12, excludes about 0.7 % of the data.
    assert 0.006 < float((tree.log_density(x, 0.0) < -2.12).double().mean()) < 0.009


def test_first_branch_and_its_children(tree: FractalTree) -> None:
    torch.testing.assert_close(tree.starts[0], torch.tensor([0.0030, 0.0325], dtype=torch.float64) * SCALE)
    direction = tree.vectors[0] / SCALE
    assert math.isclose(math.atan2(direction[1], direction[0]), math.pi / 4)
    # RandomState(2) starts with -0.41675785, -0.05626683: the length of the root, then the angle of its first child.
    assert math.isclose(direction.norm(), 0.292 * (1 - 0.2 * 0.4167578474054706))
    child = tree.vectors[1] / SCALE
    turn = math.atan2(child[1], child[0]) - math.pi / 4
    assert math.isclose(turn, 1 - 0.2 * 0.056266827226329474)
    for branch in (1, 64):  # the two children start at the end of the root; the second follows the subtree of the first
        torch.testing.assert_close(tree.starts[branch], tree.starts[0] + tree.vectors[0])
    other = tree.vectors[64] / SCALE
    assert math.atan2(other[1], other[0]) < math.pi / 4
    # The covariance is (d d^T + q^2 (1 - d d^T)) z z^T.
    size, thickness = 0.06 * direction.norm() * SCALE, 0.2 / direction.norm()
    along = torch.outer(direction, direction) / direction.norm() ** 2
    brush = along + thickness**2 * (torch.eye(2) - along)
    torch.testing.assert_close(tree.covariances[0], brush * torch.outer(size, size))


def test_classes_share_one_random_stream(tree: FractalTree) -> None:
    second, both = FractalTree("B"), FractalTree("AB")
    torch.testing.assert_close(both.vectors, torch.cat([tree.vectors, second.vectors]))
    assert math.isclose(float(both.branch_weights.sum()), 1)
    first_vector = second.vectors[0] / SCALE
    assert math.isclose(math.atan2(first_vector[1], first_vector[0]), 5 * math.pi / 4 - 2 * math.pi)
    assert not torch.equal(FractalTree("A", seed=3).vectors, tree.vectors)


@pytest.mark.parametrize("level", [0.002, 0.01, 0.1, 1.0, 5.0])
def test_single_precision_is_accurate(tree: FractalTree, level: float, generator: torch.Generator) -> None:
    sigma, mixture = torch.full((300,), level), tree.as_mixture()
    x = tree.sample(300, generator)[0]
    x = x + level * torch.randn(x.shape, generator=generator)
    exact = mixture.score(x.double(), sigma.double())
    error = (tree.score(x, sigma) - exact).norm(dim=1)
    assert error.max() < 1e-4 * exact.norm(dim=1).mean()
    torch.testing.assert_close(
        tree.log_density(x, sigma).double(), mixture.log_density(x.double(), sigma.double()), rtol=1e-5, atol=1e-4
    )
    torch.testing.assert_close(tree(x, sigma).double(), mixture(x.double(), sigma.double()), rtol=1e-5, atol=2e-6)


def test_single_precision_with_a_level_for_each_point(tree: FractalTree, generator: torch.Generator) -> None:
    sigma = (torch.randn(1000, generator=generator) * 1.5 - 2.3).exp()
    x = tree.sample(1000, generator)[0]
    x = x + sigma[:, None] * torch.randn(x.shape, generator=generator)
    exact = tree.as_mixture().score(x.double(), sigma.double())
    # Relative to the typical size of a score at this level, about 1 / sigma or the inverse width of a twig.
    scale = exact.norm(dim=1) + 1 / (sigma**2 + 0.004**2).sqrt()
    assert ((tree.score(x, sigma) - exact).norm(dim=1) / scale).max() < 1e-4
    shares = tree.responsibilities(x, sigma)
    torch.testing.assert_close(shares.sum(1), torch.ones(1000))
    torch.testing.assert_close(shares.mean(0).double(), tree.branch_weights, rtol=0.0, atol=0.03)


def test_far_points_are_finite(tree: FractalTree, generator: torch.Generator) -> None:
    x = torch.randn(500, 2, generator=generator) * torch.logspace(0, 15, 500)[:, None]
    for level in (0.0, 0.002, 5.0):
        exact = tree.as_mixture().score(x.double(), torch.tensor(level).double())
        score = tree.score(x, level)
        assert score.isfinite().all() and tree.log_density(x, level).isfinite().all()
        assert ((score - exact).norm(dim=1) / exact.norm(dim=1)).median() < 1e-6


def test_recipe_round_trip(tree: FractalTree) -> None:
    again = build(FractalTree("B", depth=4).recipe)
    assert torch.equal(again.vectors, FractalTree("B", depth=4).vectors)
    assert again.data_shape == (2,) and again.num_classes == 0 and again.sigma_data == 0.5


def test_invalid_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="'A', 'B' or 'AB', got 'C'"):
        FractalTree("C")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1, got 0"):
        FractalTree(depth=0)
