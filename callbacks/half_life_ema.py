"""EDM's exponential average beside, or in place of, the power-function averages.

Karras et al. 2022, https://arxiv.org/abs/2206.00364, table 7.
"""

from __future__ import annotations

from typing import Literal

from callbacks.post_hoc_ema import PostHocEMA
from lightning_guide.half_life import half_life_retention, half_life_width

__all__ = ["HalfLifeEMA"]


class HalfLifeEMA(PostHocEMA):
    """One average with the half-life min(`half_life`, `ramp` n) after n images, stored every `every_images` images.

    Evaluated by `average: half_life` of the module. Its snapshots lie apart, in `half_life/snapshots` of the run's
    folder, named by the width that its profile has at that time (`half_life_width`): other averages cannot be rebuilt
    from it exactly. As a guider: `Snapshot(run: RUN/half_life, images: ..., sigma_rel: ...)` with that very width.
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
        """`half_life` in images; `ramp` times the images seen is its limit while they are few.

        Raises:
            ValueError: if one of them is not positive.
        """
        super().__init__(every_images, update_every_steps=update_every_steps, dtype=dtype)
        if not (half_life > 0 and ramp > 0):
            raise ValueError(f"HalfLifeEMA needs half_life > 0 and ramp > 0, got {half_life} and {ramp}")
        self.half_life, self.ramp = half_life, ramp

    @property
    def sigma_rels(self) -> list[float | str]:
        """The name of the one average."""
        return ["half_life"]

    def retained(self, average: float | str, before: int, now: int) -> float:
        """As `half_life_retention`."""
        return half_life_retention(before, now, half_life=self.half_life, ramp=self.ramp)

    def width(self, average: float | str) -> float:
        """The width that the profile has now, to four decimals."""
        return round(half_life_width(self.images, half_life=self.half_life, ramp=self.ramp), 4)
