"""Noise schedules of discrete diffusion models: timesteps k = 0 ... T - 1 and their noise levels.

A model that was trained on sqrt(abar_k) x_0 + sqrt(1 - abar_k) n sees, after division by sqrt(abar_k), the noise level
sigma_k = sqrt((1 - abar_k) / abar_k). Ho et al. 2020 (linear), https://arxiv.org/abs/2006.11239; Nichol and Dhariwal
2021 (cosine), https://arxiv.org/abs/2102.09672; Lin et al. 2023 (zero terminal SNR), https://arxiv.org/abs/2305.08891.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from lightning_guide.noise import Grid, NoiseDistribution
from lightning_guide.utils.devices import to_device
from lightning_guide.utils.recipe import HasRecipe
from lightning_guide.utils.scalars import check_whole

__all__ = ["NoiseSchedule", "Spacing", "TimestepGrid", "UniformTimestep"]

Rounding = Literal["interpolate", "nearest", "floor"]
Spacing = Literal["leading", "trailing", "linspace"]

# The abar of a timestep without signal (zero terminal SNR), so that its noise level is finite: sigma = 4096.
NO_SIGNAL = 2.0**-24


class NoiseSchedule(HasRecipe):
    """Noise levels of T timesteps, sigma_k^2 = (1 - abar_k) / abar_k with abar_k = prod_{j <= k} (1 - beta_j), float64.

    * "linear": beta from `beta_start` to `beta_end` in equal steps (DDPM, DiT, ADM; the defaults).
    * "scaled_linear": sqrt(beta) in equal steps (Stable Diffusion: 0.00085 to 0.012).
    * "cosine": abar = cos^2((u + 0.008) / 1.008 pi / 2) at u = (k + 1) / T, each beta at most 0.999 (IF, ADM at 64x64).
    * a list of T numbers: the betas themselves.

    Examples:
        >>> schedule = NoiseSchedule("scaled_linear", beta_start=0.00085, beta_end=0.012)
        >>> round(schedule.sigma_max, 4), float(schedule.timestep(torch.tensor(20.0)))  # beyond the last level
        (14.6146, 999.0)
        >>> round(float(schedule.timestep(schedule.sigma(torch.tensor(250.5)))), 6)
        250.5
    """

    def __init__(
        self,
        betas: Literal["linear", "scaled_linear", "cosine"] | Sequence[float] = "linear",
        *,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        num_timesteps: int = 1000,
        zero_snr: bool = False,
        rounding: Rounding = "interpolate",
    ) -> None:
        """Configure the levels.

        Args:
            betas: kind of schedule, or the betas.
            beta_start: first beta of the linear kinds.
            beta_end: last beta of the linear kinds.
            num_timesteps: T; a list of betas has its own.
            zero_snr: rescale sqrt(abar) so that the last timestep has no signal.
            rounding: which timestep a level between two of them has: one between them, interpolated in ln sigma, the
                nearest whole number of that, or the next lower one.

        Raises:
            ValueError: if a beta is outside (0, 1), or there are fewer than 2 timesteps.
        """
        if rounding not in ("interpolate", "nearest", "floor"):
            raise ValueError(f"rounding of timesteps is interpolate, nearest or floor, got {rounding!r}")
        beta = _betas(betas, beta_start, beta_end, num_timesteps)
        if len(beta) < 2 or not bool(((beta > 0) & (beta < 1)).all()):
            raise ValueError(
                f"a noise schedule needs 2 or more betas between 0 and 1, got {len(beta)} "
                f"from {float(beta.min()):g} to {float(beta.max()):g}"
            )
        signal = (1 - beta).cumprod(0).sqrt()
        if zero_snr:
            signal = (signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))
        abar = signal.square()
        abar[-1] = max(float(abar[-1]), NO_SIGNAL) if zero_snr else abar[-1]
        self.rounding = rounding
        self._log_sigmas = ((1 - abar) / abar).log() / 2
        self._copies: dict[torch.device, Tensor] = {}

    @property
    def num_timesteps(self) -> int:
        """T."""
        return len(self._log_sigmas)

    @property
    def sigma_max(self) -> float:
        """Level of the last timestep."""
        return float(self._log_sigmas[-1].exp())

    def sigmas(self) -> Tensor:
        """Return all levels, ascending, float64 (T,) on the CPU."""
        return self._log_sigmas.exp()

    def sigma(self, timestep: Tensor) -> Tensor:
        """Return the level of each `timestep` (*), interpolated in ln sigma between whole numbers, float64."""
        table, k = self._table(timestep.device), timestep.to(torch.float64).clamp(0, self.num_timesteps - 1)
        lower = k.floor().long().clamp(max=self.num_timesteps - 2)
        return torch.lerp(table.take(lower), table.take(lower + 1), k - lower).exp()

    def timestep(self, sigma: Tensor) -> Tensor:
        """Return the timestep of each level `sigma` (*), float64, limited to 0 ... T - 1 and rounded as configured."""
        table, level = self._table(sigma.device), sigma.to(torch.float64).log()
        upper = torch.searchsorted(table, level.contiguous()).clamp(1, self.num_timesteps - 1)
        low, high = table.take(upper - 1), table.take(upper)  # an index () in brackets would be read by the host
        k = (upper - 1 + (level - low) / (high - low)).clamp(0, self.num_timesteps - 1)
        if self.rounding == "interpolate":
            return k
        # a float32 level may lie a hair below that of its timestep
        return k.round() if self.rounding == "nearest" else (k + 1e-3).floor()

    def _table(self, device: torch.device) -> Tensor:
        """Return ln sigma of all timesteps on `device`, copied there once."""
        if device not in self._copies:
            self._copies[device] = to_device(self._log_sigmas, device)
        return self._copies[device]


def _betas(kind: str | Sequence[float], start: float, end: float, count: int) -> Tensor:
    """Return the betas, float64 (T,)."""
    if not isinstance(kind, str):
        return torch.tensor(list(kind), dtype=torch.float64)
    if kind == "linear":
        return torch.linspace(start, end, count, dtype=torch.float64)
    if kind == "scaled_linear":
        return torch.linspace(math.sqrt(start), math.sqrt(end), count, dtype=torch.float64).square()
    if kind == "cosine":
        u = torch.arange(count + 1, dtype=torch.float64) / count
        abar = ((u + 0.008) / 1.008 * math.pi / 2).cos().square()
        return (1 - abar[1:] / abar[:-1]).clamp(max=0.999)
    raise ValueError(f"a noise schedule is linear, scaled_linear, cosine or a list of betas, got {kind!r}")


class TimestepGrid(Grid):
    """Levels of N timesteps of a discrete model, then 0. Lin et al. 2023, table 2.

    * "leading": k = i floor(T / N) + `offset`, i = N - 1 ... 0 (Stable Diffusion, offset 1).
    * "trailing": k = round(T - i T / N) - 1, i = 0 ... N - 1; includes the last timestep.
    * "linspace": k = (T - 1) (1 - i / (N - 1)), i = 0 ... N - 1, not rounded; the default.

    Examples:
        >>> schedule = NoiseSchedule()
        >>> schedule.timestep(TimestepGrid(schedule, 4, spacing="leading", offset=1).sigmas()[:-1]).round().tolist()
        [751.0, 501.0, 251.0, 1.0]
        >>> schedule.timestep(TimestepGrid(schedule, 4, spacing="trailing").sigmas()[:-1]).round().tolist()
        [999.0, 749.0, 499.0, 249.0]
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        num_steps: int = 32,
        *,
        spacing: Spacing = "linspace",
        offset: int = 0,
        drop_last: bool = False,
    ) -> None:
        """Choose timesteps.

        Args:
            schedule: noise levels of the timesteps.
            num_steps: N.
            spacing: which ones, see above.
            offset: added to "leading" timesteps.
            drop_last: choose N + 1 whole timesteps and leave out the last one, as some DPM-Solvers do; not "trailing".

        Raises:
            ValueError: if there are more steps than timesteps, or an unknown spacing.
        """
        check_whole(num_steps, "num_steps", least=1)
        T = schedule.num_timesteps
        if num_steps > T:
            raise ValueError(f"a grid of timesteps has at most {T} steps, one for each timestep, got {num_steps}")
        if spacing not in ("leading", "trailing", "linspace"):
            raise ValueError(f"the spacing of timesteps is leading, trailing or linspace, got {spacing!r}")
        self.schedule, self.num_steps, self.spacing = schedule, num_steps, spacing
        self.offset, self.drop_last = offset, drop_last

    def timesteps(self) -> Tensor:
        """Return the N timesteps, descending, float64."""
        T, N = self.schedule.num_timesteps, self.num_steps
        if self.spacing == "trailing":
            return (T - torch.arange(N, dtype=torch.float64) * (T / N)).round() - 1
        points = N + self.drop_last
        if self.spacing == "leading":
            k = torch.arange(points - 1, -1, -1, dtype=torch.float64) * (T // points) + self.offset
            return k[:N].clamp(max=T - 1)
        k = torch.linspace(T - 1, 0, points, dtype=torch.float64)[:N]
        return k.round() if self.drop_last else k

    def sigmas(self) -> Tensor:
        """Return the N + 1 levels, float64 on the CPU."""
        levels = self.schedule.sigma(self.timesteps())
        return torch.cat([levels, levels.new_zeros(1)])


class UniformTimestep(NoiseDistribution):
    """Levels of uniformly drawn timesteps, with which discrete models are trained."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        """Draw from the timesteps of `schedule`."""
        self.schedule = schedule

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw sigma_k, k uniform on 0 ... T - 1."""
        k = torch.randint(self.schedule.num_timesteps, (count,), generator=generator, device=generator.device)
        return self.schedule.sigma(k).to(torch.float32)
