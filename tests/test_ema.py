"""Power-function averages against their closed form, and profiles against measured and exact values."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from torch import Tensor

from lightning_guide import ema

GAMMAS = {
    0.010: 96.995,
    0.015: 63.659,
    0.025: 36.987,
    0.050: 16.972,
    0.070: 11.245,
    0.100: 6.937,
    0.130: 4.604,
    0.150: 3.558,
    0.200: 1.826,
    0.250: 0.720,
}
TARGETS = (0.015, 0.030, 0.070, 0.130, 0.200, 0.250)
ERRORS = {  # relative L2 error of the profile, from n equally spaced times with sigma_rel .05 and .10
    4: (0.50, 0.17, 0.036, 0.062, 0.22, 0.39),
    8: (0.37, 0.10, 0.013, 0.020, 0.078, 0.18),
    16: (0.21, 0.039, 3.8e-3, 5.3e-3, 0.023, 0.079),
    32: (0.080, 0.011, 9.8e-4, 1.3e-3, 6.5e-3, 0.034),
    64: (0.023, 2.9e-3, 2.5e-4, 3.4e-4, 1.7e-3, 0.015),
    256: (1.5e-3, 1.8e-4, 1.5e-5, 2.1e-5, 1.1e-4, 2.7e-3),
}


def evenly(n: int, end: float = 1e6) -> list[tuple[float, float]]:
    """n times up to `end`, each with the two averages tracked by default."""
    return [((i + 1) * end / n, width) for i in range(n) for width in (0.05, 0.10)]


def irregular_times(end: int, seed: int = 0) -> list[int]:
    """Growing image counts with steps between 1 and 300."""
    draw = random.Random(seed)
    return list(itertools.takewhile(lambda t: t <= end, itertools.accumulate(draw.randint(1, 300) for _ in range(end))))


def track(times: list[int], values: list[Tensor], gamma: float) -> list[Tensor]:
    """The average after each update, in float64."""
    average, previous, history = torch.zeros_like(values[0]), 0, []
    for time, value in zip(times, values, strict=True):
        keep = ema.retention(gamma, previous, time)
        average = keep * average + (1 - keep) * value
        history.append(average)
        previous = time
    return history


@pytest.mark.parametrize(("width", "value"), GAMMAS.items())
def test_gamma_table_and_inverse(width: float, value: float) -> None:
    assert ema.gamma(width) == pytest.approx(value, abs=6e-4)
    assert ema.sigma_rel(ema.gamma(width)) == pytest.approx(width, rel=1e-13)


def test_gamma_is_the_standard_deviation_of_the_profile() -> None:
    t = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    for width in (0.05, 0.1, 0.25):
        g = ema.gamma(width)
        p = (g + 1) * t**g / len(t)
        mean = (p * t).sum()
        assert float(mean) == pytest.approx((g + 1) / (g + 2), rel=1e-6)
        assert float((p * (t - mean) ** 2).sum().sqrt()) == pytest.approx(width, rel=1e-6)


def test_gamma_holds_to_the_edges_of_its_range() -> None:
    for width in (1e-4, 0.2886, 12**-0.5 * (1 - 1e-9)):
        assert ema.sigma_rel(ema.gamma(width)) == pytest.approx(width, rel=1e-12)


@pytest.mark.parametrize("width", [0.0, -0.1, 12**-0.5, 0.3, math.nan, math.inf])
def test_gamma_refuses_impossible_widths(width: float) -> None:
    with pytest.raises(ValueError, match="sigma_rel must lie between 0 and"):
        ema.gamma(width)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_sigma_rel_refuses_impossible_exponents(value: float) -> None:
    with pytest.raises(ValueError, match="gamma must be positive"):
        ema.sigma_rel(value)


@pytest.mark.parametrize("interval", [1, 10, 100, None])
@pytest.mark.parametrize("width", [0.05, 0.1])
def test_average_matches_its_closed_form(interval: int | None, width: float) -> None:
    """The weights seen at t_i get the share (t_i^(g+1) - t_{i-1}^(g+1)) / T^(g+1)."""
    times = irregular_times(60_000) if interval is None else list(range(interval, 500 * interval + 1, interval))
    g = ema.gamma(width)
    shares = track(times, list(torch.eye(len(times), dtype=torch.float64)), g)[-1]
    edges = (torch.tensor([0, *times], dtype=torch.float64) / times[-1]) ** (g + 1)
    torch.testing.assert_close(shares, edges.diff(), rtol=1e-9, atol=1e-15)
    assert float(shares.sum()) == pytest.approx(1, abs=1e-12)


def test_updating_less_often_skips_weights_but_keeps_the_profile() -> None:
    """Updates every 100 images weigh a group of 100 as updates every image weigh it in total."""
    g = ema.gamma(0.1)
    fine = list(range(1, 2001))
    coarse = fine[99::100]
    each = track(fine, list(torch.eye(len(fine), dtype=torch.float64)), g)[-1]
    grouped = track(coarse, list(torch.eye(len(coarse), dtype=torch.float64)), g)[-1]
    torch.testing.assert_close(each.view(-1, 100).sum(1), grouped, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("width", [0.05, 0.1, 0.25])
def test_average_of_time_itself_tends_to_the_profile_mean(width: float) -> None:
    g = ema.gamma(width)
    errors = []
    for step in (1000, 100, 10):
        times = list(range(step, 100_001, step))
        mean = float(track(times, [torch.tensor(float(t), dtype=torch.float64) for t in times], g)[-1])
        errors.append(mean / 100_000 / ((g + 1) / (g + 2)) - 1)
    assert abs(errors[-1]) < 1e-4
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.05)  # O(dT / T)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.05)


def test_retention_edges() -> None:
    assert ema.retention(7.0, 0, 10) == 0
    assert ema.retention(7.0, 10, 10) == 1
    assert ema.retention(7.0, 2e9 - 2048, 2e9) == pytest.approx(math.exp(8 * math.log1p(-2048 / 2e9)), rel=1e-12)
    for previous, current in ((11, 10), (-1, 10), (0, 0), (math.nan, 1)):
        with pytest.raises(ValueError, match="must move forward"):
            ema.retention(7.0, previous, current)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_update_equals_an_explicit_loop(dtype: torch.dtype, generator: torch.Generator) -> None:
    shapes = [(3, 5), (), (7,), (2, 3, 3, 3), (0, 4)]
    averages = [torch.randn(shape, generator=generator) for shape in shapes]
    averages[3] = averages[3].to(memory_format=torch.channels_last)
    parameters = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]
    expected = [0.9 * a.double() + 0.1 * p.detach().double() for a, p in zip(averages, parameters, strict=True)]
    identities = [a.data_ptr() for a in averages]
    ema.update_(averages, parameters, 0.9)
    for average, value in zip(averages, expected, strict=True):
        torch.testing.assert_close(average.double(), value, rtol=1e-6, atol=1e-7)
        assert average.dtype is torch.float32 and not average.requires_grad
    assert [a.data_ptr() for a in averages] == identities


def test_update_makes_no_kernel_call_for_each_tensor() -> None:
    averages, parameters = ([torch.zeros(4) for _ in range(50)] for _ in range(2))
    for keep in (0.0, 0.9):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            ema.update_(averages, parameters, keep)
        top = [event for event in profile.events() if event.cpu_parent is None]
        assert len(top) == 1 and "_foreach" in top[0].name, [event.name for event in top]


def test_first_update_copies_exactly_whatever_was_there() -> None:
    averages = [torch.full((3,), math.nan), torch.full((2,), math.inf)]
    parameters = [torch.tensor([0.1, -0.0, 1e-30]), torch.tensor([1.5, 2.5], dtype=torch.bfloat16)]
    ema.update_(averages, parameters, ema.retention(7.0, 0, 64))
    assert all(torch.equal(a, p.float()) for a, p in zip(averages, parameters, strict=True))


def test_update_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="2 averages cannot follow 1 parameters"):
        ema.update_([torch.zeros(1), torch.zeros(1)], [torch.zeros(1)], 0.5)
    with pytest.raises(ValueError, match=r"must be float32 \(3,\).*float64 \(3,\)"):
        ema.update_([torch.zeros(3, dtype=torch.float64)], [torch.zeros(3)], 0.5)
    with pytest.raises(ValueError, match=r"must be float32 \(3,\).*\(1,\)"):
        ema.update_([torch.zeros(1)], [torch.zeros(3)], 0.5)
    with pytest.raises(ValueError, match="retention must lie in"):
        ema.update_([torch.zeros(1)], [torch.zeros(1)], 1.5)


def test_inner_product_against_quadrature() -> None:
    x = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000
    for t_a, g_a, t_b, g_b in ((0.7, 6.9, 1.0, 17.0), (1.0, 3.0, 0.4, 17.0), (1.0, 5.0, 1.0, 2.0)):
        p_a = torch.where(x < t_a, (g_a + 1) * x**g_a / t_a ** (g_a + 1), 0)
        p_b = torch.where(x < t_b, (g_b + 1) * x**g_b / t_b ** (g_b + 1), 0)
        assert float(ema.inner_product(t_a, g_a, t_b, g_b)) == pytest.approx(float((p_a * p_b).mean()), rel=1e-4)


def test_inner_product_does_not_overflow_and_broadcasts() -> None:
    value = ema.inner_product(1e12, 9000.0, torch.tensor([1.0, 1e12]), torch.tensor([[9000.0], [2.0]]))
    assert value.shape == (2, 2) and value.dtype is torch.float64 and value.isfinite().all()


@pytest.mark.parametrize("n", ERRORS)
def test_profile_errors_are_the_measured_ones(n: int) -> None:
    for width, expected in zip(TARGETS, ERRORS[n], strict=True):
        assert ema.profile_error(evenly(n), (1e6, width)) == pytest.approx(expected, rel=0.05)


def test_profile_error_against_quadrature() -> None:
    stored, target = [(2.0, 0.05), (5.0, 0.1), (9.0, 0.05), (10.0, 0.1)], (10.0, 0.13)
    weights = ema.reconstruction_weights(stored, [target])[:, 0]
    t = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000 * 10

    def profile(pair: tuple[float, float]) -> Tensor:
        g = ema.gamma(pair[1])
        return torch.where(t < pair[0], (g + 1) / pair[0] * (t / pair[0]) ** g, 0)

    rebuilt = sum(w * profile(pair) for w, pair in zip(weights, stored, strict=True))
    wanted = profile(target)
    error = float((rebuilt - wanted).norm() / wanted.norm())
    assert ema.profile_error(stored, target) == pytest.approx(error, rel=1e-3)


def test_profile_error_of_a_stored_target_is_zero_and_never_nan() -> None:
    assert ema.profile_error(evenly(16), (1e6, 0.05)) == 0
    crowded = [(1e6 + i, width) for i in range(40) for width in (0.05, 0.0501)]
    for width in (0.0499, 0.05, 0.0502, 0.25):
        assert 0 <= ema.profile_error(crowded, (1e6 + 39, width)) < 2
    assert ema.profile_error(evenly(256), (1e6, 0.0500001)) < 1e-6


def test_columns_sum_to_one_and_use_nothing_from_the_future() -> None:
    stored = evenly(32)
    targets = [(1e6, 0.13), (5e5, 0.07), (1e6, 0.015), (31250.0, 0.2), (7e5, 0.06)]
    weights = ema.reconstruction_weights(stored, targets)
    assert weights.shape == (64, 5) and weights.dtype is torch.float64
    torch.testing.assert_close(weights.sum(0), torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-9)
    for column, (images, _) in enumerate(targets):
        later = torch.tensor([t > images for t, _ in stored])
        assert (weights[later, column] == 0).all() and (weights[~later, column] != 0).all()


def test_a_stored_target_is_returned_exactly() -> None:
    stored = evenly(12)
    assert torch.equal(ema.reconstruction_weights(stored, stored), torch.eye(24, dtype=torch.float64))
    twice = ema.reconstruction_weights([stored[3], *stored], [stored[3]])[:, 0]
    assert sorted(twice.tolist())[-2:] == [0, 1]


def test_nearly_equal_profiles_share_instead_of_canceling() -> None:
    stored = [(1e6, 0.05), (1e6, 0.05), (1e6 + 1e-3, 0.05), (1e6 + 1e-3, 0.1)]
    weights = ema.reconstruction_weights(stored, [(1e6 + 1e-3, 0.07)])[:, 0]
    assert float(weights.sum()) == pytest.approx(1, abs=1e-12) and weights.abs().max() < 3


def test_reconstruction_weights_refuse_impossible_requests() -> None:
    with pytest.raises(ValueError, match="no stored average precedes images=5"):
        ema.reconstruction_weights([(10, 0.05)], [(5, 0.05)])
    with pytest.raises(ValueError, match="positive number of images, got 0"):
        ema.reconstruction_weights([(0, 0.05)], [(5, 0.05)])
    with pytest.raises(ValueError, match="sigma_rel must lie between"):
        ema.reconstruction_weights([(10, 0.05)], [(10, 0.4)])


@pytest.mark.parametrize("width", [0.03, 0.07, 0.13, 0.2])
def test_reconstruction_matches_a_directly_tracked_third_average(width: float) -> None:
    """A random walk updated irregularly: the error is the exact integral of the profiles' difference over it."""
    times = irregular_times(60_000, seed=1)
    walk = torch.randn(len(times), 50, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).cumsum(0)
    stored, tracked = [], []
    for tracked_width in (0.05, 0.10):
        history = track(times, list(walk), ema.gamma(tracked_width))
        picks = range(len(times) // 32 - 1, len(times), len(times) // 32)
        stored += [(float(times[i]), tracked_width) for i in picks]
        tracked += [history[i] for i in picks]
    last = max(t for t, _ in stored)
    end = times.index(int(last)) + 1
    wanted = track(times[:end], list(walk[:end]), ema.gamma(width))[-1]
    weights = ema.reconstruction_weights(stored, [(last, width)])[:, 0]
    rebuilt = torch.einsum("i,ij->j", weights, torch.stack(tracked))

    # The path is constant on (t_{i-1}, t_i], so both averages are sums over intervals of their profiles' masses.
    edges = torch.tensor([0, *times[:end]], dtype=torch.float64)
    masses = sum(
        w * ((edges / t).clamp(max=1) ** (ema.gamma(s) + 1)).diff() for w, (t, s) in zip(weights, stored, strict=True)
    )
    exact = masses - ((edges / last) ** (ema.gamma(width) + 1)).diff()
    torch.testing.assert_close(rebuilt - wanted, exact @ walk[:end], rtol=1e-6, atol=1e-8)

    spread = walk[:end].std(0).mean()
    assert (rebuilt - wanted).abs().mean() < spread * ema.profile_error(stored, (last, width))
