"""Every method against its paper: whole trajectories in variance-preserving form, written out from the papers.

x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps, DDIM with eta = 0, gradients g by x_t, all in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from lightning_guide.samplers import Euler, TimeTravel
from lightning_guide.seeds import SampleSeeds
from tests.energies import DIM, GRID, METHODS, Bend, basis, draw_samples, mixture

COUNT = 5
MIXTURE, LOSS = mixture(), Bend()
LEVELS = GRID.sigmas().tolist()
ABARS = [1 / (1 + level**2) for level in LEVELS]
ALPHAS = [abar / abar_next for abar, abar_next in zip(ABARS, ABARS[1:], strict=False)]


def norm(v: Tensor) -> Tensor:
    return v.norm(dim=1, keepdim=True)


def rms(v: Tensor) -> Tensor:
    return v.square().mean(1, keepdim=True).sqrt()


def slope(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return the gradient of f for each sample."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(f(x).sum(), x)[0]


@dataclass
class Step:
    """One step of a paper: x_t, the level, the denoiser, and the random streams."""

    x: Tensor
    t: int
    seeds: SampleSeeds
    memory: dict[str, Tensor] = field(default_factory=dict)

    @property
    def abar(self) -> float:
        return ABARS[self.t]

    @property
    def abar_next(self) -> float:
        return ABARS[self.t + 1]

    def clean(self, x: Tensor) -> Tensor:
        return MIXTURE(x / math.sqrt(self.abar), torch.tensor(LEVELS[self.t], dtype=torch.float64))

    @property
    def eps(self) -> Tensor:
        return (self.x - math.sqrt(self.abar) * self.clean(self.x)) / math.sqrt(1 - self.abar)

    def g(self, f: Callable[[Tensor], Tensor] = LOSS) -> Tensor:
        return slope(lambda x: f(self.clean(x)), self.x)

    def ddim(self, clean: Tensor | None = None, eps: Tensor | None = None) -> Tensor:
        clean = self.clean(self.x) if clean is None else clean
        return math.sqrt(self.abar_next) * clean + math.sqrt(1 - self.abar_next) * (self.eps if eps is None else eps)

    def draws(self, n: int, purpose: str) -> Tensor:
        return self.seeds.normal(purpose, (n, DIM)).double().transpose(0, 1)


def implied(step: Step, clean: Tensor) -> Tensor:
    return step.ddim(clean, (step.x - math.sqrt(step.abar) * clean) / math.sqrt(1 - step.abar))


def from_eps(step: Step, eps: Tensor) -> Tensor:
    """Return the clean estimate implied by a noise prediction."""
    return (step.x - math.sqrt(1 - step.abar) * eps) / math.sqrt(step.abar)


def forward_eps(step: Step, w: float) -> Tensor:
    return step.eps + w * math.sqrt(1 - step.abar) * step.g()


def universal_forward(step: Step) -> Tensor:
    eps = forward_eps(step, 0.4)
    return step.ddim(from_eps(step, eps), eps)


def universal_backward(step: Step) -> Tensor:
    """Adam at rate 0.01 for 3 steps, then eps - sqrt(abar / (1 - abar)) delta."""
    D, delta = step.clean(step.x), torch.zeros_like(step.x)
    m, v = torch.zeros_like(delta), torch.zeros_like(delta)
    for k in range(1, 4):
        g = slope(lambda d: LOSS(D + d), delta)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        delta = delta - 0.01 * (m / (1 - 0.9**k)) / ((v / (1 - 0.999**k)).sqrt() + 1e-8)
    eps = step.eps - math.sqrt(step.abar / (1 - step.abar)) * delta
    return step.ddim(from_eps(step, eps), eps)


def universal(step: Step) -> Tensor:
    eps = forward_eps(step, 0.4)
    D, delta = from_eps(step, eps), torch.zeros_like(step.x)
    for _ in range(2):
        delta = delta - 0.1 * slope(lambda d: LOSS(D + d), delta)
    eps = eps - math.sqrt(step.abar / (1 - step.abar)) * delta
    return step.ddim(from_eps(step, eps), eps)


def loss_guided(step: Step) -> Tensor:
    """eps - sqrt(1 - abar) w grad log mean exp(-loss(D + sqrt(1 - abar) n))."""
    n = step.draws(4, "energy")

    def f(D: Tensor) -> Tensor:
        return -torch.stack([(-LOSS(D + math.sqrt(1 - step.abar) * each)).exp() for each in n]).mean(0).log()

    eps = step.eps + 0.8 * math.sqrt(1 - step.abar) * step.g(f)
    return step.ddim(from_eps(step, eps), eps)


def adam_dps(step: Step) -> Tensor:
    g, k = step.g(), step.t + 1
    m = 0.3 * step.memory.get("m", torch.zeros_like(g)) + 0.7 * g
    v = 0.8 * step.memory.get("v", torch.zeros_like(g)) + 0.2 * g**2
    step.memory.update(m=m, v=v)
    update = (m / (1 - 0.3**k)) / ((v / (1 - 0.8**k)).sqrt() + 1e-8)
    return step.ddim() - 0.05 * update / math.sqrt(ALPHAS[step.t])


def augmented(step: Step) -> Tensor:
    n = step.draws(5, "energy noise")
    return step.g(lambda D: torch.stack([LOSS(D + 0.3 * each) for each in n]).mean(0))


def polyak(step: Step, rate: float, g: Tensor) -> Tensor:
    return rate * norm(step.eps) / norm(g) ** 2 * g


def capped(step: Step) -> Tensor:
    delta = polyak(step, 0.5, step.g())
    longest = 0.3 * math.sqrt(DIM) * math.sqrt(1 - step.abar_next)
    return step.ddim() - delta * (longest / norm(delta)).clamp(max=1)


def clip_rule(step: Step) -> Tensor:
    c1 = math.sqrt(step.abar_next) * (1 - ALPHAS[step.t]) / (1 - step.abar)
    g = step.g()
    rate = 0.2 * c1 * math.sqrt((1 - step.abar) / step.abar)
    return step.ddim() - rate * rms(step.eps) * g / rms(g)


def mpgd(step: Step, direction: Tensor) -> Tensor:
    return step.ddim() - 0.2 * math.sqrt(step.abar_next) * direction


def shares(kind: str) -> list[float]:
    s = [{"increase": alpha, "decrease": 1 - alpha, "constant": 1.0}[kind] for alpha in ALPHAS]
    return [each * len(s) / sum(s) for each in s]


def tfg(step: Step, gamma: float, draws: int, iterations: int, rho_kind: str, mu_kind: str) -> Tensor:
    n = step.draws(draws, "energy") if gamma else torch.zeros(1, *step.x.shape).double()

    def log_f(z: Tensor) -> Tensor:
        return torch.stack([(-LOSS(z + gamma * math.sqrt(1 - step.abar) * each)).exp() for each in n]).mean(0).log()

    Delta = 0.2 * shares(rho_kind)[step.t] * step.g(log_f)
    D, delta = step.clean(step.x), torch.zeros_like(step.x)
    for _ in range(iterations):
        delta = delta + 0.1 * shares(mu_kind)[step.t] * slope(log_f, D + delta)
    return step.ddim() + Delta / math.sqrt(ALPHAS[step.t]) + math.sqrt(step.abar_next) * delta


U = basis()
PAPERS: dict[str, Callable[[Step], Tensor]] = {
    "UG forward": universal_forward,
    "UG backward": universal_backward,
    "UG": universal,
    "LGD": loss_guided,
    "DPS": lambda step: step.ddim() - 0.3 * step.g(),
    "AdamDPS": adam_dps,
    "FreeDoM": lambda step: step.ddim() - 0.5 * math.sqrt(step.abar) * step.g(),
    "FreeDoM RA": lambda step: step.ddim() - 0.5 * math.sqrt(step.abar) * augmented(step),
    "FreeDoM CLIP": clip_rule,
    "Polyak": lambda step: step.ddim() - polyak(step, 0.05, step.g()),
    "RA Polyak": lambda step: step.ddim() - polyak(step, 0.05, augmented(step)),
    "Polyak capped": capped,
    "true Polyak": lambda step: step.ddim() - 0.3 * LOSS(step.clean(step.x))[:, None] * step.g() / norm(step.g()) ** 2,
    "normalized": lambda step: step.ddim() - 0.2 * step.g() / norm(step.g()),
    "MPGD": lambda step: mpgd(step, slope(LOSS, step.clean(step.x))),
    "MPGD-AE": lambda step: mpgd(step, slope(lambda D: LOSS(D @ U @ U.T), step.clean(step.x))),
    "MPGD-Z": lambda step: mpgd(step, slope(lambda z: LOSS(z @ U.T), step.clean(step.x) @ U) @ U.T),
    "TFG": lambda step: tfg(step, 0.3, 2, 3, "increase", "increase"),
    "TFG decrease": lambda step: tfg(step, 0.0, 1, 2, "decrease", "constant"),
}


def published(method: Callable[[Step], Tensor], x: Tensor, repeats: int = 1) -> Tensor:
    """Return the end of the trajectory from x_VE at the first level.

    Between repeats x_t <- sqrt(alpha) x_{t-1} + sqrt(1 - alpha) n.
    """
    seeds, memory = SampleSeeds(3, range(len(x))), {}
    x = x * math.sqrt(ABARS[0])
    for t in range(len(ALPHAS)):
        for repeat in range(repeats):
            x = method(Step(x, t, seeds, memory))
            if repeat < repeats - 1:
                n = seeds.normal("time travel", (DIM,)).double()
                x = math.sqrt(ALPHAS[t]) * x + math.sqrt(1 - ALPHAS[t]) * n
    return x


def start() -> Tensor:
    return LEVELS[0] * torch.randn(COUNT, DIM, dtype=torch.float64)


def test_every_method_has_a_published_formula() -> None:
    assert PAPERS.keys() == METHODS.keys()


@pytest.mark.parametrize("name", METHODS)
def test_trajectory_matches_the_paper(name: str) -> None:
    x = start()
    found = draw_samples(METHODS[name](LOSS, MIXTURE), Euler(GRID), COUNT, start=x)
    torch.testing.assert_close(found, published(PAPERS[name], x), rtol=1e-9, atol=1e-9)
    assert (found - draw_samples(MIXTURE, Euler(GRID), COUNT, start=x)).abs().max() > 0.01


@pytest.mark.parametrize("name", [name for name in METHODS if name != "AdamDPS"])
def test_recurrence_matches_the_paper(name: str) -> None:
    x = start()
    found = draw_samples(METHODS[name](LOSS, MIXTURE), TimeTravel(Euler(GRID), 3), COUNT, start=x)
    torch.testing.assert_close(found, published(PAPERS[name], x, repeats=3), rtol=1e-9, atol=1e-9)


def test_implied_noise_is_that_of_the_new_estimate() -> None:
    """UG is the DDIM step of the guided estimate with its implied noise."""
    step = Step(start() * math.sqrt(ABARS[0]), 0, SampleSeeds(3, range(COUNT)))
    eps = forward_eps(step, 0.4)
    torch.testing.assert_close(universal_forward(step), implied(step, from_eps(step, eps)))
