"""Points: fresh draws by seed and position."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from datamodules import Points
from lightning_guide.data import Batch
from lightning_guide.distributions.gaussian_mixture import GaussianMixture


def mixture() -> GaussianMixture:
    """Two far components in the plane."""
    return GaussianMixture(torch.tensor([[-2.0, 0.0], [2.0, 1.0]]), torch.eye(2).expand(2, 2, 2) * 0.1)


def train(data: Points, batches: int) -> list[Tensor]:
    """The first training batches."""
    loaded = list(itertools.islice(iter(data.train_dataloader()), batches))
    assert all(type(batch) is Batch and batch.condition is None for batch in loaded)
    return [batch.x for batch in loaded]


@pytest.mark.parametrize("workers", [0, 2])
def test_draws_depend_on_seed_and_position(workers: int) -> None:
    """Draws are reproducible, also in workers, differ by batch and seed, and leave the global generator alone."""
    state = torch.get_rng_state()
    reference = train(Points(mixture(), batch_size=64), 4)
    again = train(Points(mixture(), batch_size=64, num_workers=workers), 4)
    other = train(Points(mixture(), batch_size=64, seed=1), 1)
    assert all(torch.equal(x, y) for x, y in zip(reference, again, strict=True))
    assert not torch.equal(reference[0], reference[1]) and not torch.equal(reference[0], other[0])
    assert workers or torch.equal(torch.get_rng_state(), state)


def test_draws_have_the_moments_of_the_distribution() -> None:
    """Mean (0, 1/2) and covariance of the mixture, to 5 standard errors."""
    x = torch.cat(train(Points(mixture(), batch_size=4096), 4))
    assert x.dtype == torch.float32
    torch.testing.assert_close(x.mean(0), torch.tensor([0.0, 0.5]), atol=0.08, rtol=0)
    torch.testing.assert_close(x.T.cov(), torch.tensor([[4.1, 1.0], [1.0, 0.35]]), atol=0.08, rtol=0)


def test_finite_sets_are_fixed_and_distinct() -> None:
    """Held-out and reference draws are independent of the seed and differ from each other."""
    one, other = (Points(mixture(), heldout_size=300, training_size=200, seed=seed) for seed in (0, 1))
    assert one.heldout().x.shape == (300, 2) and one.training().x.shape == (200, 2)
    assert torch.equal(one.heldout().x, other.heldout().x)
    assert not torch.equal(one.heldout().x[:200], one.training().x)
    reference = torch.cat([batch.x for batch in one.reference(torch.device("cpu"))])
    assert torch.equal(reference, one.training().x)
    assert one.data_shape == (2,) and one.num_classes == 0
    assert torch.equal(one.decode(one.encode(reference)), reference)


def test_invalid_distribution_and_sizes() -> None:
    with pytest.raises(ValueError, match="no method sample"):
        Points(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="expected at least 1"):
        Points(mixture(), heldout_size=0)
