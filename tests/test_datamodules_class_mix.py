"""Class mixes of a synthetic set: label counts, and the mix that moves guided samples to target shares."""

from __future__ import annotations

import math

import pytest
import torch

from datamodules.class_mix import class_labels, class_shares, mix_against
from lightning_guide.data import Batch
from lightning_guide.distributions.gaussian_mixture import GaussianMixture
from lightning_guide.guidance import SIMS
from lightning_guide.noise import KarrasGrid
from lightning_guide.samplers import Heun
from lightning_guide.seeds import SampleSeeds

DATA = [Batch(torch.zeros(3, 1), torch.tensor([0, 2, 2])), Batch(torch.zeros(1, 1), torch.tensor([2]))]


def test_class_shares() -> None:
    assert class_shares("equal", 4, []).tolist() == [0.25] * 4
    assert class_shares("data", 3, DATA).tolist() == [0.25, 0, 0.75]
    assert class_shares([1, 0, 3], 3, []).tolist() == [0.25, 0, 0.75]


@pytest.mark.parametrize("classes", [[1.0, 1.0], [1.0, -1.0, 1.0], [0.0, 0.0, 0.0], [1.0, math.nan, 1.0]])
def test_invalid_shares_are_refused(classes: list[float]) -> None:
    with pytest.raises(ValueError, match="expected 3 numbers >= 0, one for each class, not all 0"):
        class_shares(classes, 3, [])


def test_mix_of_data_without_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="classes: data needs data with labels"):
        class_shares("data", 3, [Batch(torch.zeros(2, 1))])
    with pytest.raises(ValueError, match="classes: data needs data with labels"):
        class_shares("data", 3, [Batch(torch.zeros(2, 1), torch.tensor([-1, -1]))])


def test_unlabeled_examples_are_not_counted() -> None:
    assert class_shares("data", 3, [Batch(torch.zeros(3, 1), torch.tensor([-1, 2, 1]))]).tolist() == [0, 0.5, 0.5]


@pytest.mark.parametrize("count", [1, 7, 10, 1000])
def test_label_counts_match_shares_to_less_than_one(count: int) -> None:
    shares = torch.tensor([0.1, 0.2, 0.7]).double()
    labels = class_labels(shares, count, seed=0)
    counts = torch.bincount(labels, minlength=3)
    assert len(labels) == count and ((counts - shares * count).abs() < 1).all()
    if count == 1000:
        assert counts.tolist() == [100, 200, 700]
        first = torch.bincount(labels[:500], minlength=3)
        assert (first - 500 * shares).abs().max() < 60, "not mixed"
        assert torch.equal(labels, class_labels(shares, count, seed=0))
        assert not torch.equal(labels, class_labels(shares, count, seed=1))


def test_mix_of_two_classes_follows_log_odds() -> None:
    def logit(p: float) -> float:
        return math.log(p / (1 - p))

    for target, base, omega in ((0.7, 0.5, 1.0), (0.2, 0.35, 0.5), (0.5, 0.5, 2.0)):
        b = mix_against([target, 1 - target], [base, 1 - base], omega=omega)[0]
        assert logit(target) == pytest.approx(logit(base) + omega * (logit(base) - logit(b)))


def test_extrapolation_inverts_mix_of_many_classes() -> None:
    a, q = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0.25, 0.25, 0.4, 0.1])
    b = torch.tensor(mix_against(q.tolist(), a.tolist(), omega=1.5))
    reached = a**2.5 / b**1.5
    torch.testing.assert_close(reached / reached.sum(), q)


@pytest.mark.parametrize(("target", "expected"), [(0.5, 0.5), (0.55, 0.55), (0.6, 0.596), (0.8, 0.73)])
def test_separate_modes_move_toward_the_target(target: float, expected: float) -> None:
    """The exact guided flow of two narrow, distant modes reaches small shifts and undershoots large ones.

    With h half the log-odds of the modes at +-1, D = tanh(x / s^2 + h); (1 + omega) tanh(u + h_a) - omega tanh(u + h_b)
    is tanh(u + h_a + omega (h_a - h_b)), the target's D, only to first order in h_a - h_b. The flow preserves the
    order of points, so points started at the quantiles of the noise give the share without sampling error.
    """
    means, covariances = [[-2.0], [2.0]], [[[1e-4]], [[1e-4]]]
    mix = mix_against([target, 1 - target], [0.5, 0.5], omega=1.0)
    guided = SIMS(GaussianMixture(means, covariances, mix), 2.0, base=GaussianMixture(means, covariances))
    quantiles = (torch.arange(800, dtype=torch.float64) + 0.5) / 800
    x = 80 * math.sqrt(2) * torch.erfinv(2 * quantiles - 1)[:, None]
    *_, end = Heun(KarrasGrid(100)).steps(guided, x, seeds=SampleSeeds(0, range(800)))
    assert bool(((end.x.abs() - 2).abs() < 0.1).all())
    assert float((end.x < 0).double().mean()) == pytest.approx(expected, abs=0.005)


def test_nonpositive_mix_arguments_are_refused() -> None:
    for arguments in (([0.5, 0.5], [1.0, 0.0], 1.0), ([0.5], [0.5, 0.5], 1.0), ([0.5, 0.5], [0.5, 0.5], 0.0)):
        with pytest.raises(ValueError, match="a mix needs omega > 0 and as many positive shares"):
            mix_against(arguments[0], arguments[1], omega=arguments[2])
