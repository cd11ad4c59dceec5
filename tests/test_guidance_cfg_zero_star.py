"""CFG-Zero* against a rectified flow walked in its own coordinates."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_guide.guidance.combinations import ZeroStar
from lightning_guide.samplers import DPMSolver2M, Euler, Heun, Sampler
from tests.branches import GRID, LEVELS, SAMPLERS, blobs, combined, guided, mixtures, start, walk


def velocity(clean: Tensor, x: Tensor, sigma: float) -> Tensor:
    """v = eps - x_0."""
    return (x - clean) / sigma - clean


@pytest.mark.parametrize("alpha", [None, 0.6, 1.0])
@pytest.mark.parametrize("shape", [(2,), (3, 4, 5)])
def test_formula(shape: tuple[int, ...], alpha: float | None) -> None:
    sigma = 0.7
    x, pos, first, second = torch.randn(4, 6, *shape, dtype=torch.float64)
    rows = []
    for row in range(6):
        v = velocity(pos[row], x[row], sigma)
        total = v
        for weight, neg in ((3.0, first), (0.4, second)):
            u = velocity(neg[row], x[row], sigma)
            scale = (v * u).sum() / u.square().sum() if alpha is None else alpha
            total = total + (scale * u + weight * (v - scale * u) - v)
        rows.append((x[row] - sigma * total) / (1 + sigma))  # x_0 of x = x_0 + sigma (v + x_0)
    out = combined(ZeroStar(zero_steps=0, alpha=alpha), x, sigma, pos, (3.0, first), (0.4, second))
    torch.testing.assert_close(out, torch.stack(rows))


def test_the_step_is_orthogonal_to_the_negative_velocity() -> None:
    x, pos, neg = torch.randn(3, 6, 3, 4, 5, dtype=torch.float64)
    out = combined(ZeroStar(zero_steps=0), x, 0.7, pos, (3.0, neg))
    step, u = velocity(out, x, 0.7) - velocity(pos, x, 0.7), velocity(neg, x, 0.7)
    assert (step * u).flatten(1).sum(1).abs().max() < 1e-12 and step.abs().max() > 0.1


def test_parallel_velocities_leave_the_positive() -> None:
    x, pos = torch.randn(2, 6, 3, 4, 5, dtype=torch.float64)
    u = 0.3 * velocity(pos, x, 0.7)
    neg = (x - 0.7 * u) / 1.7
    torch.testing.assert_close(combined(ZeroStar(zero_steps=0), x, 0.7, pos, (3.0, neg)), pos)
    still = x / 1.7  # v = 0: no direction to scale
    out = combined(ZeroStar(zero_steps=0), x, 0.7, pos, (3.0, still))
    assert bool(out.isfinite().all())


@pytest.mark.parametrize("zero_steps", [0, 1, 3])
def test_euler_is_the_flow_walked_in_its_own_coordinates(zero_steps: int) -> None:
    """x_t = x / (1 + sigma), t = sigma / (1 + sigma), x_t' = x_t + (t' - t) v."""
    pos, neg = mixtures()[:2]
    x = start(2, batch=5)
    end = walk(Euler(GRID), guided([pos, neg], [3.0], ZeroStar(zero_steps=zero_steps)), x)
    state, times = x / (1 + LEVELS[0]), [level / (1 + level) for level in LEVELS]
    for step, (t, t_next) in enumerate(zip(times, times[1:], strict=False)):
        here, sigma = state / (1 - t), torch.tensor(t / (1 - t), dtype=torch.float64)
        v, u = (velocity(model(here, sigma), here, float(sigma)) for model in (pos, neg))
        alpha = (v * u).sum(1, keepdim=True) / u.square().sum(1, keepdim=True)
        guided_v = alpha * u + 3.0 * (v - alpha * u)
        state = state + (t_next - t) * (guided_v if step >= zero_steps else 0)
    torch.testing.assert_close(end.x, state, rtol=1e-10, atol=1e-10)
    assert end.evaluations == 2 * (len(LEVELS) - 1 - zero_steps)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_first_steps_have_zero_velocity_and_no_evaluation(sampler: Sampler) -> None:
    x = start(3, 4, 5)
    denoiser = guided(blobs(3, 4, 5), [2.0, 1.5], ZeroStar(zero_steps=2))
    spent = [0]
    for trajectory in sampler.steps(denoiser, x, seeds=walk(sampler, denoiser, x).seeds):
        spent.append(trajectory.evaluations)
        if trajectory.step < 2:
            torch.testing.assert_close(trajectory.x, x * (1 + trajectory.sigma_next) / (1 + LEVELS[0]))
    each = 6 if isinstance(sampler, Heun) else 3
    assert [b - a for a, b in zip(spent, spent[1:], strict=False)] == [0, 0, each, each, each, 3]


def test_only_zero_steps() -> None:
    """All of them: the flow never moves, and the result is the noise itself."""
    x = start(2)
    for sampler in (Euler(GRID), DPMSolver2M(GRID)):
        end = walk(sampler, guided(mixtures(), [2.0, 1.5], ZeroStar(zero_steps=100)), x)
        torch.testing.assert_close(end.x, x / (1 + LEVELS[0]))
        assert end.evaluations == 0


def test_steps_are_not_negative() -> None:
    with pytest.raises(ValueError, match="ZeroStar needs zero_steps >= 0, got -1"):
        ZeroStar(zero_steps=-1)


def test_alpha_is_finite() -> None:
    with pytest.raises(ValueError, match="ZeroStar needs a finite alpha, or None for the optimum, got nan"):
        ZeroStar(alpha=float("nan"))
