"""Intervals from blocks, paired differences, and the smooth model: against closed forms and scipy."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from lightning_guide.search.gaussian_process import smooth
from lightning_guide.search.scores import Scores, difference, jackknife, leave_one_out, student_quantile


def mean_scores(blocks: Tensor) -> Scores:
    """Scores of the metric `m`: the mean over all samples of the blocks (B, n)."""
    without = [{"m": float(torch.cat([blocks[:i], blocks[i + 1 :]]).mean())} for i in range(len(blocks))]
    return Scores({"m": float(blocks.mean())}, without)


def test_of_a_mean_it_is_students_interval(generator: torch.Generator) -> None:
    blocks = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    means = blocks.mean(1)
    low, high = stats.t.interval(0.9, 6, loc=float(means.mean()), scale=stats.sem(means))
    found = jackknife(float(blocks.mean()), [each["m"] for each in mean_scores(blocks).without], confidence=0.9)
    assert found.value == pytest.approx((low + high) / 2, abs=1e-12)
    assert found.half_width == pytest.approx((high - low) / 2, rel=2e-4)
    assert math.isnan(jackknife(1.0, []).half_width) and math.isnan(jackknife(1.0, [2.0]).half_width)


def test_it_covers_the_truth_of_a_curved_statistic_as_often_as_it_says(generator: torch.Generator) -> None:
    hits = 0
    for _ in range(400):
        blocks = 1 + torch.randn(10, 40, generator=generator, dtype=torch.float64)
        whole = float(blocks.mean()) ** 2
        without = [float(torch.cat([blocks[:i], blocks[i + 1 :]]).mean()) ** 2 for i in range(10)]
        found = jackknife(whole, without)
        hits += abs(found.value - 1) <= found.half_width
    assert 0.92 < hits / 400 < 0.975


def test_few_blocks_are_left_out_one_by_one_and_many_in_groups_that_hold_each_block_once() -> None:
    assert leave_one_out([0]) == leave_one_out([]) == []
    assert leave_one_out([0, 1, 2]) == [[1, 2], [0, 2], [0, 1]]
    assert len(leave_one_out(range(32))) == 32
    unions = leave_one_out(range(75))
    gone = [sorted(set(range(75)) - set(union)) for union in unions]
    assert len(unions) == 32 and sorted(sum(gone, [])) == list(range(75))
    assert {len(group) for group in gone} == {2, 3}
    assert all(union == sorted(union) for union in unions)


def test_groups_of_unequal_size_cover_the_truth_as_often_as_single_blocks(generator: torch.Generator) -> None:
    hits, widths = 0, []
    for _ in range(400):
        blocks = 1 + torch.randn(45, 10, generator=generator, dtype=torch.float64)  # 19 groups of one, 13 of two
        without = [float(torch.stack(union).mean()) ** 2 for union in leave_one_out(list(blocks))]
        found = jackknife(float(blocks.mean()) ** 2, without)
        hits += abs(found.value - 1) <= found.half_width
        widths.append(found.half_width)
    assert 0.92 < hits / 400 < 0.975
    exact = float(stats.t.ppf(0.975, 31)) * 2 / math.sqrt(450)
    assert sum(widths) / 400 == pytest.approx(exact, rel=0.05)


def test_what_two_points_have_in_common_drops_out_of_their_difference(generator: torch.Generator) -> None:
    common = torch.randn(8, 30, generator=generator, dtype=torch.float64)
    one, other = mean_scores(common + 0.1), mean_scores(common)
    apart = difference(one, other, "m")
    assert apart.value == pytest.approx(0.1) and apart.half_width < 1e-12 < one.estimate("m").half_width


@pytest.mark.parametrize(("freedom", "tolerance"), [(1, 1e-9), (2, 1e-9), (3, 0.01), (5, 1e-3), (9, 1e-4), (50, 1e-6)])
def test_quantiles_of_student(freedom: int, tolerance: float) -> None:
    assert student_quantile(0.975, freedom) == pytest.approx(float(stats.t.ppf(0.975, freedom)), rel=tolerance)


def test_neighbors_take_noise_off_and_tell_about_points_not_drawn(generator: torch.Generator) -> None:
    side = torch.linspace(0, 1, 7, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    truth = (grid[:, 0] - 0.7).square() + (grid[:, 1] - 0.3).square()
    drawn = torch.randperm(49, generator=generator)[:30]
    noisy = truth[drawn] + 0.1 * torch.randn(30, generator=generator, dtype=torch.float64)
    found = smooth(grid[drawn], noisy, torch.ones(30), grid)
    error = (found - truth).square().mean().sqrt()
    assert error < 0.6 * (noisy - truth[drawn]).square().mean().sqrt()
    left_out = torch.tensor([i for i in range(49) if i not in drawn])
    assert (found - truth)[left_out].square().mean() < 0.25 * truth.var()


def test_scores_of_many_samples_count_for_more() -> None:
    x = torch.tensor([[0.0], [0.0], [1.0], [1.0]], dtype=torch.float64)
    y, samples = torch.tensor([0.0, 1.0, 3.0, 3.0]), torch.tensor([100, 1, 50, 50])
    at_zero = float(smooth(x, y, samples, x[:1]))
    assert 0 <= at_zero < 0.2
    assert smooth(x, torch.ones(4), samples, x).tolist() == [1.0] * 4
