"""Choice of some of many stored averages to rebuild another one from, so that its cost does not grow with them.

Orthogonal least squares (known from system identification; no paper was read): one after another that profile is
taken which lowers the distance to the target most, given those taken before. It is a Cholesky decomposition of the
Gram matrix with the pivots in this order, of which only the columns taken are computed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lightning_guide.ema import gamma, inner_product

__all__ = ["MANY", "useful_profiles"]


MANY = 256  # averages up to which all are used; of more as many are chosen


def useful_profiles(stored: Sequence[tuple[float, float]], target: tuple[float, float]) -> list[int]:
    """Return the sorted numbers of at most `MANY` profiles of `stored` that serve a target; all, if there are no more.

    `stored` and `target` are (images, sigma_rel), none later than the target. Costs MANY^2 operations for each.

    Raises:
        ValueError: if a sigma_rel is outside (0, 12^-0.5).
    """
    if len(stored) <= MANY:
        return list(range(len(stored)))
    times = torch.tensor([images for images, _ in stored], dtype=torch.float64) / target[0]
    exponents = {width: gamma(width) for width in {width for _, width in stored}}
    gammas = torch.tensor([exponents[width] for _, width in stored], dtype=torch.float64)
    scale = inner_product(times, gammas, times, gammas).rsqrt()
    wanted = scale * inner_product(times, gammas, 1.0, gamma(target[1]))  # of the rest of the target
    left = torch.ones_like(wanted)  # squared length of what the profiles taken do not span
    columns = torch.zeros(MANY, len(stored), dtype=torch.float64)
    chosen: list[int] = []
    for number in range(MANY):
        gains = torch.where(left > 1e-10, wanted.square() / left.clamp(min=1e-10), -1.0)  # below it is rounding
        best = int(gains.argmax())
        if gains[best] < 0:
            break
        chosen.append(best)
        gram = scale * scale[best] * inner_product(times, gammas, times[best], gammas[best])
        column = (gram - columns[:number].mT @ columns[:number, best]) / left[best].sqrt()
        columns[number] = column
        wanted = wanted - column * (wanted[best] / left[best].sqrt())
        left = (left - column.square()).clamp(min=0)
        left[chosen] = 0
    return sorted(chosen)
