"""Settings of a published scheduler, read by name; those that are not supported are refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning_guide.noise import Grid, KarrasGrid, LogUniformGrid
from lightning_guide.noise_schedule import NoiseSchedule, Spacing, TimestepGrid
from lightning_guide.preconditioning import EpsilonPrediction, Preconditioning, SamplePrediction, VelocityPrediction

__all__ = ["Clipping", "SchedulerSettings"]

SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
PREDICTIONS: dict[str, type[EpsilonPrediction | VelocityPrediction | SamplePrediction]] = {
    "epsilon": EpsilonPrediction,
    "v_prediction": VelocityPrediction,
    "sample": SamplePrediction,
}


@dataclass(frozen=True)
class Clipping:
    """Arguments of the guidance `Clipped` with which a scheduler limits the clean estimate."""

    limit: float = 1.0
    quantile: float | None = None
    ceiling: float = math.inf
    follow: bool = True


class SchedulerSettings(dict[str, Any]):
    """Settings of a scheduler, which refuses those that are not supported."""

    def __init__(self, name: str, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.name = name

    def require(self, **expected: Any) -> None:
        """Refuse settings, present and not None, with other values than those `expected` (a value or a tuple)."""
        for key, value in expected.items():
            allowed = value if isinstance(value, tuple) else (value,)
            if self.get(key) is not None and self[key] not in allowed:
                raise ValueError(
                    f"{self.name} with {key}={self[key]!r} is not supported; expected {' or '.join(map(repr, allowed))}"
                )

    def schedule(self, rounding: Any = "interpolate") -> NoiseSchedule:
        """Return the noise schedule."""
        kind = self.get("beta_schedule", "linear")
        if self.get("trained_betas") is None and kind not in SCHEDULES:
            raise ValueError(
                f"{self.name} with beta_schedule={kind!r} is not supported; expected {', '.join(SCHEDULES)}"
            )
        return NoiseSchedule(
            self.get("trained_betas") or SCHEDULES[kind],  # type: ignore[arg-type]
            beta_start=self.get("beta_start", 0.0001),
            beta_end=self.get("beta_end", 0.02),
            num_timesteps=self.get("num_train_timesteps", 1000),
            zero_snr=bool(self.get("rescale_betas_zero_snr")),
            rounding=rounding,
        )

    def preconditioning(self, schedule: NoiseSchedule, spacing: Spacing) -> Preconditioning:
        """Return the preconditioning of a discrete model."""
        prediction = self.get("prediction_type", "epsilon")
        if prediction not in PREDICTIONS:
            raise ValueError(
                f"{self.name} with prediction_type={prediction!r} is not supported; expected {', '.join(PREDICTIONS)}"
            )
        offset = self.get("steps_offset", 0)
        return PREDICTIONS[prediction](schedule, spacing=spacing, offset=offset)

    def grid(self, schedule: NoiseSchedule, num_steps: int, spacing: Spacing, *, drop_last: bool = False) -> Grid:
        """Return the timesteps, or a grid between the first and the last of them."""
        grid = TimestepGrid(
            schedule,
            num_steps,
            spacing=self.get("timestep_spacing", spacing),
            offset=self.get("steps_offset", 0),
            drop_last=drop_last and self.get("timestep_spacing", spacing) != "trailing",
        )
        # DPM-Solver spreads Karras' levels over all timesteps, Euler and Heun over the chosen ones
        levels = schedule.sigmas().flip(0) if drop_last else grid.sigmas()[:-1]
        return self.spread(float(levels[-1]), float(levels[0]), num_steps) or grid

    def spread(self, low: float, high: float, num_steps: int) -> Grid | None:
        """Return the Karras or exponential grid that the settings ask for, if any."""
        if self.get("use_karras_sigmas"):
            return KarrasGrid(num_steps, sigma_min=low, sigma_max=high)
        if self.get("use_exponential_sigmas"):
            return LogUniformGrid(num_steps, sigma_min=low, sigma_max=high)
        return None

    def clipping(self, *, follow: bool) -> Clipping | None:
        """Return how the clean estimate is limited, if it is."""
        if self.get("thresholding"):
            quantile = self.get("dynamic_thresholding_ratio", 0.995)
            return Clipping(quantile=quantile, ceiling=self.get("sample_max_value", 1.0), follow=follow)
        return Clipping(self.get("clip_sample_range", 1.0), follow=follow) if self.get("clip_sample") else None
