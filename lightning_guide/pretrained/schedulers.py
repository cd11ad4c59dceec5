"""Settings of diffusers' schedulers as preconditionings, samplers and grids.

| class | sampler | grid |
|---|---|---|
| EulerDiscreteScheduler | `Euler` | timesteps, Karras or exponential |
| HeunDiscreteScheduler | `Heun` | the same |
| EulerAncestralDiscreteScheduler | `DDIM` with eta 1 | timesteps |
| DDIMScheduler | `Euler` (eta 0) | timesteps |
| DDPMScheduler, fixed_small | `DDIM` with eta 1 | timesteps |
| DDPMScheduler, learned_range | `LearnedVariance` | timesteps |
| PNDMScheduler, skip_prk_steps | `PLMS` | timesteps |
| DPMSolverMultistepScheduler, dpmsolver++, order 2 | `DPMSolver2M` | timesteps, Karras or exponential |
| DPMSolverMultistepScheduler, sde-dpmsolver++, order 2 | `SDEDPMSolver2M` | the same |
| UniPCMultistepScheduler, bh2 | `UniPC` | the same |
| DEISMultistepScheduler, logrho | `DEIS` | the same |
| FlowMatchEulerDiscreteScheduler | `Euler` | flow with shift |
| EDMEulerScheduler | `Euler` | Karras or exponential |
| EDMDPMSolverMultistepScheduler, order 2 | `DPMSolver2M` | the same |
| CMStochasticIterativeScheduler | `ProportionalAncestral` with eta 1 | some of Karras' levels |

Every row agrees with the scheduler on the same network and noise (tests/test_pretrained_schedulers.py), except for
known differences. Grids end at sigma = 0; DEIS, and DDIM and PNDM without set_alpha_to_one, end at the level of
timestep 0. The "linspace" timesteps of DDIM and PNDM are not their own steps there, which always go T / N further.
Consistency models end at sigma_min there, so that their fresh noise is sqrt(sigma'^2 - sigma_min^2). Any other class or
setting is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lightning_guide.noise import CustomGrid, FlowGrid, Grid, KarrasGrid, LogUniformGrid
from lightning_guide.noise_schedule import Spacing
from lightning_guide.preconditioning import (
    EDM,
    Consistency,
    Preconditioning,
    RectifiedFlow,
)
from lightning_guide.pretrained.scheduler_settings import Clipping, SchedulerSettings
from lightning_guide.samplers import (
    DDIM,
    DEIS,
    PLMS,
    DPMSolver2M,
    Euler,
    Heun,
    LearnedVariance,
    ProportionalAncestral,
    Sampler,
    SDEDPMSolver2M,
    UniPC,
)

__all__ = ["ScheduledSampling", "flow_shift", "scheduled_sampling"]


@dataclass(frozen=True)
class ScheduledSampling:
    """What the settings of a scheduler say: how its model is read, and how it is sampled by default."""

    preconditioning: Preconditioning
    sampler: Sampler
    clipping: Clipping | None = None


def flow_shift(
    tokens: int, *, low: float = 0.5, high: float = 1.15, low_tokens: int = 256, high_tokens: int = 4096
) -> float:
    """Return the shift e^mu of a flow grid by resolution, mu linear in the number of tokens of an image (Flux).

    Examples:
        >>> round(flow_shift(256), 4), round(flow_shift(4096), 4)
        (1.6487, 3.1582)
    """
    return math.exp(low + (high - low) * (tokens - low_tokens) / (high_tokens - low_tokens))


def scheduled_sampling(config: Mapping[str, Any], num_steps: int, *, tokens: int | None = None) -> ScheduledSampling:
    """Read the `config` of a scheduler (its `scheduler_config.json`), for a sampler of `num_steps` steps.

    `tokens`: number of tokens of an image, for schedulers whose shift depends on it.

    Raises:
        ValueError: naming the class or the setting that is not in the table.
    """
    name = str(config.get("_class_name"))
    settings = SchedulerSettings(name, config)
    if name not in _READERS:
        raise ValueError(f"the scheduler {name} is not supported; supported: {', '.join(_READERS)}")
    return _READERS[name](settings, num_steps, tokens)


Reader = Callable[[SchedulerSettings, int, int | None], ScheduledSampling]


def _discrete(sampler: type[Sampler], spacing: Spacing, **fixed: Any) -> Reader:
    """Return the reader of a scheduler of a discrete model with a default `spacing`."""

    def read(settings: SchedulerSettings, num_steps: int, tokens: int | None) -> ScheduledSampling:
        settings.require(use_beta_sigmas=False, final_sigmas_type="zero", skip_prk_steps=True)
        settings.require(use_lu_lambdas=False, use_flow_sigmas=False, euler_at_final=False)
        settings.require(variance_type=("fixed_small", "fixed_small_log", "learned_range"), interpolation_type="linear")
        if sampler is PLMS:  # the other library combines earlier velocities, which belong to other levels
            settings.require(prediction_type="epsilon")
        multistep = sampler in (DEIS, DPMSolver2M, SDEDPMSolver2M, UniPC)
        spaced = settings.get("timestep_spacing", spacing)
        # DPM-Solver rounds the timesteps of Karras' levels
        rounded = multistep and settings.get("use_karras_sigmas")
        schedule = settings.schedule("nearest" if rounded else "interpolate")
        grid = settings.grid(schedule, num_steps, spacing, drop_last=multistep)
        clipping = settings.clipping(follow=settings.name != "DDIMScheduler")
        return ScheduledSampling(settings.preconditioning(schedule, spaced), sampler(grid, **fixed), clipping)

    return read


def _ddpm(settings: SchedulerSettings, num_steps: int, tokens: int | None) -> ScheduledSampling:
    """Read DDPMScheduler."""
    learned = settings.get("variance_type") == "learned_range"
    reader = _discrete(LearnedVariance, "leading") if learned else _discrete(DDIM, "leading", eta=1.0)
    return reader(settings, num_steps, tokens)


def _dpm_solver(settings: SchedulerSettings, num_steps: int, tokens: int | None) -> ScheduledSampling:
    """Read DPMSolverMultistepScheduler."""
    settings.require(algorithm_type=("dpmsolver++", "sde-dpmsolver++"), solver_order=2, solver_type="midpoint")
    stochastic = settings.get("algorithm_type") == "sde-dpmsolver++"
    return _discrete(SDEDPMSolver2M if stochastic else DPMSolver2M, "linspace")(settings, num_steps, tokens)


def _unipc(settings: SchedulerSettings, num_steps: int, tokens: int | None) -> ScheduledSampling:
    """Read UniPCMultistepScheduler."""
    settings.require(solver_type="bh2", predict_x0=True, disable_corrector=[], solver_order=(1, 2, 3), solver_p=None)
    settings.require(lower_order_final=True)
    return _discrete(UniPC, "linspace", order=settings.get("solver_order", 2))(settings, num_steps, tokens)


def _deis(settings: SchedulerSettings, num_steps: int, tokens: int | None) -> ScheduledSampling:
    """Read DEISMultistepScheduler."""
    settings.require(solver_type="logrho", algorithm_type="deis", solver_order=(1, 2, 3), lower_order_final=True)
    return _discrete(DEIS, "linspace", order=settings.get("solver_order", 2))(settings, num_steps, tokens)


def _flow(settings: SchedulerSettings, num_steps: int, tokens: int | None) -> ScheduledSampling:
    """Read FlowMatchEulerDiscreteScheduler."""
    settings.require(
        stochastic_sampling=False,
        invert_sigmas=False,
        use_karras_sigmas=False,
        use_exponential_sigmas=False,
        use_beta_sigmas=False,
        time_shift_type="exponential",
    )
    if settings.get("shift_terminal"):
        raise ValueError(f"{settings.name} with shift_terminal={settings['shift_terminal']} is not supported")
    steps = settings.get("num_train_timesteps", 1000)
    shift, last = float(settings.get("shift", 1.0)), None
    if settings.get("use_dynamic_shifting"):
        if tokens is None:
            raise ValueError(f"{settings.name} with use_dynamic_shifting needs the number of tokens of an image")
        shift = flow_shift(
            tokens,
            low=settings.get("base_shift", 0.5),
            high=settings.get("max_shift", 1.15),
            low_tokens=settings.get("base_image_seq_len", 256),
            high_tokens=settings.get("max_image_seq_len", 4096),
        )
    else:  # this scheduler shifts its last time 1 / T before it spaces the times, and again afterwards
        last = shift / steps / (1 + (shift - 1) / steps)
    grid = FlowGrid(num_steps, shift=shift, last=last if num_steps > 1 else None)
    return ScheduledSampling(RectifiedFlow(float(steps), shift=shift), Euler(grid))


def _edm(sampler: type[Sampler]) -> Reader:
    """Return the reader of a scheduler of EDM models."""

    def read(settings: SchedulerSettings, num_steps: int, tokens: int | None) -> ScheduledSampling:
        settings.require(prediction_type="epsilon", sigma_schedule=("karras", "exponential"), final_sigmas_type="zero")
        settings.require(solver_order=2, algorithm_type="dpmsolver++", solver_type="midpoint", thresholding=False)
        levels = {"sigma_min": settings.get("sigma_min", 0.002), "sigma_max": settings.get("sigma_max", 80.0)}
        if settings.get("sigma_schedule", "karras") == "karras":
            grid: Grid = KarrasGrid(num_steps, rho=settings.get("rho", 7.0), **levels)
        else:
            grid = LogUniformGrid(num_steps, **levels)
        return ScheduledSampling(EDM(settings.get("sigma_data", 0.5)), sampler(grid))

    return read


def _consistency(settings: SchedulerSettings, num_steps: int, tokens: int | None) -> ScheduledSampling:
    """Read CMStochasticIterativeScheduler."""
    settings.require(clip_denoised=True, s_noise=1.0)
    low, high = settings.get("sigma_min", 0.002), settings.get("sigma_max", 80.0)
    steps, every = settings.get("num_train_timesteps", 40), settings.get("num_train_timesteps", 40) // num_steps
    levels = KarrasGrid(steps, sigma_min=low, sigma_max=high, rho=settings.get("rho", 7.0)).sigmas()
    chosen = levels[torch.arange(num_steps) * every]
    preconditioning = Consistency(settings.get("sigma_data", 0.5), sigma_min=low, sigma_max=high)
    return ScheduledSampling(preconditioning, ProportionalAncestral(CustomGrid(chosen.tolist()), eta=1.0), Clipping())


_READERS: dict[str, Reader] = {
    "EulerDiscreteScheduler": _discrete(Euler, "linspace"),
    "HeunDiscreteScheduler": _discrete(Heun, "linspace"),
    "EulerAncestralDiscreteScheduler": _discrete(DDIM, "linspace", eta=1.0),
    "DDIMScheduler": _discrete(Euler, "leading"),
    "DDPMScheduler": _ddpm,
    "PNDMScheduler": _discrete(PLMS, "leading"),
    "DPMSolverMultistepScheduler": _dpm_solver,
    "UniPCMultistepScheduler": _unipc,
    "DEISMultistepScheduler": _deis,
    "FlowMatchEulerDiscreteScheduler": _flow,
    "EDMEulerScheduler": _edm(Euler),
    "EDMDPMSolverMultistepScheduler": _edm(DPMSolver2M),
    "CMStochasticIterativeScheduler": _consistency,
}
