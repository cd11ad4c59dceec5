"""Metrics against an exact density: values of exact samples and of samples with known faults."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_guide.distributions.fractal import FractalTree
from lightning_guide.evaluation.metrics import exact_density as density
from lightning_guide.evaluation.metrics.exact_density import (
    DensityMetrics,
    lost_mass,
    sliced_quantiles,
    sliced_wasserstein,
    total_variation,
)

KEYS = ["outliers", "mean_log_density", "total_variation", "lost_mass", "sliced_wasserstein", "non_finite"]


@pytest.fixture(scope="module")
def tree() -> FractalTree:
    """Return class A of the fractal."""
    return FractalTree("A")


@pytest.fixture(scope="module")
def prepared(tree: FractalTree) -> DensityMetrics:
    """Return a prepared metric; tests use clones."""
    metric = DensityMetrics(tree)
    metric.prepare(())
    return metric


def scores(prepared: DensityMetrics, *batches: Tensor) -> dict[str, float]:
    """Return the metrics of the given batches together."""
    metric = prepared.clone()
    metric.reset()
    for x in batches:
        metric.update(x)
    return {name: float(value) for name, value in metric.compute().items()}


def test_exact_samples_have_documented_values(
    prepared: DensityMetrics, tree: FractalTree, generator: torch.Generator
) -> None:
    x = tree.sample(16384, generator)[0]
    result = scores(prepared, x[:10000], x[10000:])
    assert list(result) == KEYS
    assert abs(result["outliers"] - 0.01) < 4 * math.sqrt(0.01 * 0.99 / 16384)
    assert abs(result["mean_log_density"] - 1.352) < 0.03
    assert 0.017 < result["total_variation"] < 0.03
    assert result["lost_mass"] == 0 and result["non_finite"] == 0
    assert 0.002 < result["sliced_wasserstein"] < 0.009


def test_two_exact_sample_sets_have_small_total_variation(prepared: DensityMetrics, tree: FractalTree) -> None:
    shares = []
    for seed in (1, 2):
        x = tree.sample(16384, torch.Generator().manual_seed(seed))[0]
        shares.append(tree.responsibilities(x, 0.002).double().mean(0))
    assert 0.02 < float(total_variation(*shares)) < 0.045


def test_lost_branches_are_measured(prepared: DensityMetrics, tree: FractalTree, generator: torch.Generator) -> None:
    x, component = tree.sample(16384, generator)
    kept = component // 8 < 64  # the root and the subtree of its first child
    gone = float(tree.branch_weights[64:].sum())
    result = scores(prepared, x[kept])
    assert abs(result["total_variation"] - gone) < 0.03
    assert abs(result["lost_mass"] - gone) < 0.05
    assert result["outliers"] < 0.015


def test_blur_causes_outliers(prepared: DensityMetrics, tree: FractalTree, generator: torch.Generator) -> None:
    x = tree.sample(8192, generator)[0]
    noise = torch.randn(x.shape, generator=generator)
    blurred = [scores(prepared, x + level * noise) for level in (0.0, 0.01, 0.05)]
    for worse, better in ((1, 0), (2, 1)):
        assert blurred[worse]["outliers"] > blurred[better]["outliers"] + 0.02
        assert blurred[worse]["mean_log_density"] < blurred[better]["mean_log_density"]


def test_sliced_wasserstein_of_a_shift(prepared: DensityMetrics, tree: FractalTree, generator: torch.Generator) -> None:
    x = tree.sample(16384, generator)[0]
    # The mean over the directions of (shift . direction)^2 is |shift|^2 / 2.
    shifted = scores(prepared, x + torch.tensor([3.0, 4.0]))
    assert math.isclose(shifted["sliced_wasserstein"], 5 / math.sqrt(2), rel_tol=2e-3)
    assert shifted["outliers"] > 0.999


def test_batches_and_merged_states_add_up(
    prepared: DensityMetrics, tree: FractalTree, generator: torch.Generator
) -> None:
    x = tree.sample(3000, generator)[0] * 1.1
    x[5] = math.nan
    whole = scores(prepared, x)
    first, second, idle = prepared.clone(), prepared.clone(), prepared.clone()
    for part, batch in ((first, x[:700]), (second, x[700:2000]), (second, x[2000:])):
        part.update(batch)
    first.merge_state(second)
    first.merge_state(idle)
    for name, value in first.compute().items():
        assert math.isclose(float(value), whole[name], rel_tol=1e-6), name


def test_non_finite_samples_count_only_as_outliers(
    prepared: DensityMetrics, tree: FractalTree, generator: torch.Generator
) -> None:
    x = tree.sample(4000, generator)[0]
    clean = scores(prepared, x)
    bad = torch.tensor([[math.nan, 0.0], [0.0, math.inf], [1e25, 0.0], [-math.inf, math.nan]])
    result = scores(prepared, x[:100], bad, x[100:])
    assert math.isclose(result["non_finite"], 4 / 4004)
    assert math.isclose(result["outliers"] * 4004, clean["outliers"] * 4000 + 4)
    for name in ("mean_log_density", "total_variation", "lost_mass", "sliced_wasserstein"):
        assert math.isclose(result[name], clean[name], rel_tol=1e-6), name
    nothing = scores(prepared, bad)
    assert nothing["outliers"] == nothing["non_finite"] == 1
    assert all(math.isnan(nothing[name]) for name in KEYS[1:5])


def test_exact_samples_are_drawn_at_first_use(tree: FractalTree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(density, "TRUE_SAMPLES", 2**14)
    updated, merged, prepared = DensityMetrics(tree), DensityMetrics(tree), DensityMetrics(tree)
    prepared.prepare(())
    updated.update(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))
    merged.merge_state(updated)
    expected = updated.compute()
    with pytest.warns(UserWarning, match="before the ``update``"):  # it has only merged samples
        result = merged.compute()
    assert all(torch.equal(value, expected[name]) for name, value in result.items())
    for metric in (updated, merged):
        assert torch.equal(metric.threshold, prepared.threshold)
        assert torch.equal(metric.quantiles, prepared.quantiles)
        assert not metric.state_dict()


def test_total_variation_and_lost_mass_by_hand() -> None:
    exact, sampled = torch.tensor([0.4, 0.4, 0.2]), torch.tensor([0.9, 0.09, 0.01])
    assert math.isclose(float(total_variation(sampled, exact)), 0.5, rel_tol=1e-6)
    assert math.isclose(float(lost_mass(sampled, exact)), 0.6, rel_tol=1e-6)
    assert float(lost_mass(exact / 4, exact)) == 0  # exactly a quarter is not lost
    assert float(lost_mass(exact, exact)) == float(total_variation(exact, exact)) == 0


def test_sliced_wasserstein_of_gaussians(generator: torch.Generator) -> None:
    # Between N(0, 1) and N(m, s^2) in any direction: W_2^2 = (m . direction)^2 + (s - 1)^2.
    z = torch.randn(2, 2**15, 2, generator=generator)
    distance = sliced_wasserstein(3 * z[0, : 2**14] + torch.tensor([1.0, 0.0]), sliced_quantiles(z[1], 2**12))
    assert math.isclose(float(distance), math.sqrt(0.5 + 4), rel_tol=0.02)
    assert float(sliced_wasserstein(z[0], sliced_quantiles(z[0]))) < 1e-6
    assert math.isnan(float(sliced_wasserstein(z[0, :0], sliced_quantiles(z[1]))))


def test_invalid_arguments_raise(prepared: DensityMetrics, tree: FractalTree) -> None:
    with pytest.raises(ValueError, match="no samples"), pytest.warns(UserWarning, match="before the ``update``"):
        prepared.clone().compute()
    with pytest.raises(ValueError, match=r"\(B, 2\), got \(4, 3\)"):
        prepared.clone().update(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="smoothing must not be negative, got -1"):
        DensityMetrics(tree, smoothing=-1)
