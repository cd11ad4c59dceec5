"""The Frechet distance against closed forms, against scipy's matrix square root, and as a metric against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from lightning_guide.data import Batch
from lightning_guide.evaluation import FrechetDistance, RawPixels, frechet_distance


def random_gaussian(size: int, generator: torch.Generator, rank: int | None = None) -> tuple[Tensor, Tensor]:
    """Return a mean and a covariance of the given rank."""
    factor = torch.randn(size, rank or 2 * size, generator=generator, dtype=torch.float64)
    return torch.randn(size, generator=generator, dtype=torch.float64), factor @ factor.T / size


def scipy_distance(mean_1: Tensor, cov_1: Tensor, mean_2: Tensor, cov_2: Tensor) -> float:
    """Return the distance by the textbook formula."""
    root = scipy.linalg.sqrtm(cov_1.numpy() @ cov_2.numpy()).real
    return float((mean_1 - mean_2).square().sum() + cov_1.trace() + cov_2.trace() - 2 * np.trace(root))


def numpy_distance(real: np.ndarray, generated: np.ndarray) -> float:
    """Return the distance of features (N, F) by numpy's mean and covariance and the eigenvalues of the product."""
    cov_1, cov_2 = np.cov(real, rowvar=False), np.cov(generated, rowvar=False)
    roots = np.sqrt(np.linalg.eigvals(cov_1 @ cov_2).astype(complex)).real.sum()
    return float(((real.mean(0) - generated.mean(0)) ** 2).sum() + np.trace(cov_1) + np.trace(cov_2) - 2 * roots)


def batches(x: Tensor, size: int) -> list[Batch]:
    """Return `x` in batches."""
    return [Batch(part) for part in x.split(size)]


@pytest.mark.parametrize("size", [1, 7, 64])
def test_agrees_with_scipy(size: int, generator: torch.Generator) -> None:
    one, other = random_gaussian(size, generator), random_gaussian(size, generator)
    assert frechet_distance(*one, *other).item() == pytest.approx(scipy_distance(*one, *other), rel=1e-10)
    assert frechet_distance(*one, *other).item() == pytest.approx(frechet_distance(*other, *one).item(), rel=1e-10)


def test_isotropic_gaussians_have_a_closed_form() -> None:
    eye = torch.eye(5)
    value = frechet_distance(torch.full((5,), 1.0), 4 * eye, torch.zeros(5), 9 * eye)
    assert value.dtype == torch.float64 and value.shape == ()
    assert value.item() == pytest.approx(5 * 1 + 5 * (2 - 3) ** 2, rel=1e-12)


@pytest.mark.parametrize("rank", [1, 5, 16])
def test_distance_to_itself_is_zero(rank: int, generator: torch.Generator) -> None:
    mean, covariance = random_gaussian(16, generator, rank)
    assert frechet_distance(mean, covariance, mean, covariance).item() == pytest.approx(0, abs=1e-6)


def test_singular_covariances_on_either_side(generator: torch.Generator) -> None:
    zero = torch.zeros(2)
    flat, full = torch.diag(torch.tensor([1.0, 0.0])), torch.diag(torch.tensor([4.0, 9.0]))
    for covariances in ((flat, full), (full, flat)):
        assert frechet_distance(zero, covariances[0], zero, covariances[1]).item() == pytest.approx(1 + 9, rel=1e-12)
    assert frechet_distance(zero, torch.zeros(2, 2), zero, full).item() == pytest.approx(13, rel=1e-12)
    # of rank 3 and 4 in 8 dimensions, against the eigenvalues of the product of square roots
    (mean_1, cov_1), (mean_2, cov_2) = random_gaussian(8, generator, 3), random_gaussian(8, generator, 4)
    halves = []
    for covariance in (cov_1, cov_2):
        values, vectors = np.linalg.eigh(covariance.numpy())
        halves.append(vectors * np.sqrt(values.clip(0)) @ vectors.T)
    fidelity = np.linalg.svd(halves[0] @ halves[1], compute_uv=False).sum()
    expected = float((mean_1 - mean_2).square().sum() + cov_1.trace() + cov_2.trace()) - 2 * fidelity
    assert frechet_distance(mean_1, cov_1, mean_2, cov_2).item() == pytest.approx(expected, rel=1e-6)


def test_non_finite_arguments_give_nan() -> None:
    eye = torch.eye(2)
    assert frechet_distance(torch.zeros(2), eye, torch.tensor([0.0, torch.inf]), eye).isnan()
    assert frechet_distance(torch.zeros(2), eye, torch.zeros(2), eye * torch.nan).isnan()


def test_mismatched_shapes_raise() -> None:
    with pytest.raises(ValueError, match=r"\(F,\), \(F, F\), \(F,\), \(F, F\) with one F, got .*\(3, 3\)"):
        frechet_distance(torch.zeros(2), torch.eye(2), torch.zeros(3), torch.eye(3))


def test_metric_agrees_with_numpy_for_all_batch_sizes(generator: torch.Generator) -> None:
    real, fake = (torch.randint(256, (n, 1, 3, 3), generator=generator, dtype=torch.uint8) for n in (101, 57))
    expected = numpy_distance(*(x.flatten(1).double().numpy() / 127.5 - 1 for x in (real, fake)))
    for size in (1, 10, 101):
        metric = FrechetDistance(RawPixels())
        metric.prepare(batches(real, size))
        for batch in batches(fake, size):
            metric.update(batch.x, None)
        assert metric.compute()["fd"].item() == pytest.approx(expected, rel=1e-6)  # features are float32


def test_points_far_from_the_origin_keep_precision(generator: torch.Generator) -> None:
    real, fake = (torch.randn(n, 3, generator=generator) + 1000 for n in (200, 150))
    metric = FrechetDistance(RawPixels(), name="far")
    metric.prepare(batches(real, 64))
    metric.update(fake)
    expected = numpy_distance(real.double().numpy(), fake.double().numpy())
    assert metric.compute()["far"].item() == pytest.approx(expected, rel=1e-6)


def test_merged_halves_equal_the_whole(generator: torch.Generator) -> None:
    real, fake = torch.randn(50, 4, generator=generator), torch.randn(40, 4, generator=generator)
    whole = FrechetDistance(RawPixels())
    whole.prepare(batches(real, 50))
    one, other = whole.clone(), whole.clone()
    whole.update(fake)
    one.update(fake[:13])
    other.update(fake[13:])
    one.merge_state(other)
    assert one.compute()["fd"].item() == pytest.approx(whole.compute()["fd"].item(), rel=1e-12)


def test_distance_of_the_training_set_to_itself_is_zero(generator: torch.Generator) -> None:
    real = torch.randn(50, 4, generator=generator)
    metric = FrechetDistance(RawPixels())
    metric.prepare(batches(real, 20))
    metric.update(real)
    assert metric.compute()["fd"].item() == pytest.approx(0, abs=1e-9)


def test_preparing_again_replaces_the_reference(generator: torch.Generator) -> None:
    real, other = torch.randn(50, 4, generator=generator), torch.randn(50, 2, generator=generator)
    metric = FrechetDistance(RawPixels())
    metric.prepare(batches(real, 20))
    metric.update(real)
    metric.prepare(batches(other, 20))
    metric.update(other)
    assert metric.compute()["fd"].item() == pytest.approx(0, abs=1e-9)


def test_too_few_examples_raise(generator: torch.Generator) -> None:
    metric = FrechetDistance(RawPixels(), name="fd_raw")
    with pytest.raises(ValueError, match="FrechetDistance is not prepared; call prepare"):
        metric.update(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="fd_raw needs at least 2 real examples to estimate a covariance, got 0"):
        metric.prepare([])
    with pytest.raises(ValueError, match="at least 2 real examples .* got 1"):
        metric.prepare([Batch(torch.zeros(1, 2))])
    metric.prepare([Batch(torch.randn(5, 2, generator=generator))])
    metric.update(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="fd_raw needs at least 2 samples to estimate a covariance, got 1"):
        metric.compute()
