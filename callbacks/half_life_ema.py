"""Half-life EMA: the exponential weight average of EDM, updated in training and stored as snapshots.

Karras et al. 2022 (EDM), https://arxiv.org/abs/2206.00364, table 7.
"""

from __future__ import annotations

from typing import Any, Literal

import lightning.pytorch as pl

from callbacks.post_hoc_ema import PostHocEMA
from lightning_guide.ema import Average, half_life_retention, half_life_width

__all__ = ["HalfLifeEMA"]


class HalfLifeEMA(PostHocEMA):
    """Exponential average (EDM) with half-life min(`half_life`, `ramp` n) after n images, stored every `every_images`.

    Evaluated by `average: half_life` of the module. Its snapshots are kept apart, in `half_life/snapshots` of the run
    folder, and named by the width of its profile at that time (`half_life_width`): other averages cannot be
    reconstructed from it exactly. As a guider: `Snapshot(run: RUN/half_life, images: ..., sigma_rel: ...)` with exactly
    that width.
    """

    folder = "half_life"

    def __init__(
        self,
        every_images: int,
        *,
        half_life: float = 500_000,
        ramp: float = 0.05,
        update_every_steps: int = 1,
        dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    ) -> None:
        """Configure the average; the other arguments are those of `PostHocEMA`.

        Args:
            every_images: images between snapshots.
            half_life: in images.
            ramp: upper limit of the half-life as a fraction of the images seen.
            update_every_steps: optimizer steps between updates.
            dtype: type of the stored weights.

        Raises:
            ValueError: if one of them is not positive.
        """
        super().__init__(every_images, update_every_steps=update_every_steps, dtype=dtype)
        if not (half_life > 0 and ramp > 0):
            raise ValueError(f"HalfLifeEMA needs half_life > 0 and ramp > 0, got {half_life} and {ramp}")
        self.half_life, self.ramp = half_life, ramp

    @property
    def averages(self) -> list[Average]:
        """The one half-life average."""
        return [Average(None)]

    def retained(self, average: Average, before: int, now: int) -> float:
        """Return `half_life_retention`."""
        return half_life_retention(before, now, half_life=self.half_life, ramp=self.ramp)

    def width(self, average: Average) -> float:
        """Return the current width of the profile, to four decimals."""
        return round(half_life_width(self.images, half_life=self.half_life, ramp=self.ramp), 4)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the average and its half-life."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        checkpoint[self.state_key] |= {"half_life": self.half_life, "ramp": self.ramp}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the average of a checkpoint for `on_fit_start`.

        Raises:
            ValueError: if the checkpoint was written with another half-life.
        """
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        stored = checkpoint.get(self.state_key, {})
        for name, value in (("half_life", self.half_life), ("ramp", self.ramp)):
            if trainer.state.fn == "fit" and stored.get(name, value) != value:
                raise ValueError(
                    f"the average of the checkpoint has {name} {stored[name]:g} and HalfLifeEMA has {value:g}; "
                    "expected the same, since the width of its profile follows from it"
                )
