"""Exponential moving averages (EMA) of weights: power-function and half-life profiles, and post-hoc reconstruction.

Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models" (EDM2), sections 3 and C,
https://arxiv.org/abs/2312.02696. Time t is counted in images. The average with exponent g at time T weighs the
weights of time t by the profile p(t) = (g + 1) t^g / T^(g + 1) on [0, T], whose standard deviation relative to T,
`sigma_rel`, names it. Profiles of stored averages span a space in which any other profile is approximated.

The half-life average of EDM (Karras et al. 2022, https://arxiv.org/abs/2206.00364, table 7 and appendix F.2) is
exponential with half-life min(500,000, n / 20) after n images. While the half-life grows as ramp n, it equals the
power-function average with exponent g = ln(2) / ramp - 1, sigma_rel 0.063 for ramp = 0.05; later its width in images
is constant, and its width relative to the run shrinks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "Average",
    "LARGEST_SIGMA_REL",
    "gamma",
    "half_life_retention",
    "half_life_width",
    "inner_product",
    "profile_error",
    "reconstruction_weights",
    "retention",
    "sigma_rel",
    "update_",
]


LARGEST_SIGMA_REL = 12**-0.5


"""The sigma_rel of a flat profile (g = 0): every power-function average is strictly shorter."""


@dataclass(frozen=True)
class Average:
    """One average of the weights of a run.

    Attributes:
        sigma_rel: relative width of a power-function profile; None: the half-life average, whose width changes.

    Examples:
        >>> Average.of(0.05), Average.of("half_life").folder
        (Average(sigma_rel=0.05), 'half_life')
    """

    sigma_rel: float | None

    @classmethod
    def of(cls, value: Average | float | str) -> Average:
        """Return the average that a config writes as a width or as "half_life".

        Raises:
            ValueError: for anything else.
        """
        if isinstance(value, Average):
            return value
        if value == "half_life":
            return cls(None)
        try:
            return cls(float(value))
        except (TypeError, ValueError):
            raise ValueError(f"average is {value!r}; expected a width sigma_rel, 'half_life' or null") from None

    @property
    def value(self) -> float | str:
        """The same as a config writes it."""
        return "half_life" if self.sigma_rel is None else self.sigma_rel

    @property
    def folder(self) -> str:
        """Folder of its snapshot store within the run folder."""
        return "." if self.sigma_rel is not None else "half_life"

    def __str__(self) -> str:
        return str(self.value)


def sigma_rel(gamma: float) -> float:
    """Relative standard deviation sqrt(g + 1) / ((g + 2) sqrt(g + 3)) of the profile with exponent g = `gamma`.

    Source: EDM2, equation 126.

    Raises:
        ValueError: unless 0 < gamma < inf.
    """
    if not 0 < gamma < math.inf:
        raise ValueError(f"gamma must be positive and finite, got {gamma}")
    return math.sqrt(gamma + 1) / ((gamma + 2) * math.sqrt(gamma + 3))


def gamma(sigma_rel: float) -> float:
    """Exponent g of the profile with relative standard deviation `sigma_rel`: the inverse of `sigma_rel(gamma)`.

    It is the largest root of g^3 + 7 g^2 + (16 - s) g + (12 - s) = 0 with s = sigma_rel^-2, which has three real
    roots wherever the answer is positive; the trigonometric solution picks the largest. Source: EDM2, algorithm 2.

    Raises:
        ValueError: outside (0, 12^-0.5).

    Examples:
        >>> round(gamma(0.1), 3), round(sigma_rel(gamma(0.1)), 6)
        (6.937, 0.1)
    """
    if not 0 < sigma_rel < LARGEST_SIGMA_REL:
        raise ValueError(f"sigma_rel must lie between 0 and 12^-0.5 = {LARGEST_SIGMA_REL:.4f}, got {sigma_rel}")
    s = sigma_rel**-2
    # g = x - 7/3 turns the cubic into x^3 - p x + q = 0
    p = s + 1 / 3
    q = 4 * s / 3 + 2 / 27
    angle = math.acos(max(-1.0, min(1.0, -1.5 * q / p * math.sqrt(3 / p))))
    return 2 * math.sqrt(p / 3) * math.cos(angle / 3) - 7 / 3


def retention(gamma: float, previous: float, current: float) -> float:
    """Fraction (previous / current)^(g + 1) of the old average that survives an update at time `current`.

    With `previous` the time of the update before, in images, this is exact for any interval: the weights seen at
    update i end up with a share proportional to t_i^(g + 1) - t_{i-1}^(g + 1), the profile's mass in
    (t_{i-1}, t_i]. The first update (previous = 0) keeps nothing. Source: EDM2, equation 123.

    Raises:
        ValueError: unless 0 <= previous <= current and current > 0.
    """
    if not (0 <= previous <= current and current > 0):
        raise ValueError(f"an update of an average must move forward in images, got {previous} -> {current}")
    return float((previous / current) ** (gamma + 1))


@torch.no_grad()
def update_(averages: Sequence[Tensor], parameters: Sequence[Tensor], retention: float) -> None:
    """In place: average <- retention * average + (1 - retention) * parameter, for all tensors at once.

    Averages are float32; parameters may be of lower precision. With `retention` 0 they are copied exactly,
    whatever the averages held. One multi-tensor operation a device, never one a tensor.

    Raises:
        ValueError: if the lists differ in length or shapes, if an average is not float32 or if `retention` is outside
            [0, 1].
    """
    if not 0 <= retention <= 1:
        raise ValueError(f"retention must lie in [0, 1], got {retention}")
    if len(averages) != len(parameters):
        raise ValueError(f"{len(averages)} averages cannot follow {len(parameters)} parameters")
    groups: dict[torch.device, tuple[list[Tensor], list[Tensor]]] = {}
    for average, parameter in zip(averages, parameters, strict=True):
        if average.dtype != torch.float32 or average.shape != parameter.shape:
            raise ValueError(
                f"an average must be float32 {tuple(parameter.shape)} like its parameter, "
                f"got {average.dtype} {tuple(average.shape)}"
            )
        group = groups.get(average.device)
        if group is None:
            group = groups[average.device] = ([], [])
        group[0].append(average)
        group[1].append(parameter)
    for old, new in groups.values():
        if retention == 0:
            torch._foreach_copy_(old, new)
        else:
            same = all(tensor.dtype is torch.float32 for tensor in new)
            torch._foreach_lerp_(old, new if same else [tensor.float() for tensor in new], 1 - retention)


def inner_product(t_a: Tensor | float, g_a: Tensor | float, t_b: Tensor | float, g_b: Tensor | float) -> Tensor:
    """Inner product of two profiles, the integral of p_a(t) p_b(t) over t; arguments broadcast, result float64.

    <p_a, p_b> = (g_a + 1)(g_b + 1) / ((g_a + g_b + 1) max(t_a, t_b)) * (min / max)^g, g being the exponent of the
    profile that reaches further. Written in ratios of times, so that large exponents do not overflow.
    Source: EDM2, equation 134.
    """
    t_a, g_a, t_b, g_b = (torch.as_tensor(value, dtype=torch.float64) for value in (t_a, g_a, t_b, g_b))
    longest = torch.maximum(t_a, t_b)
    decay = (torch.minimum(t_a, t_b) / longest) ** torch.where(t_a < t_b, g_b, g_a)
    return (g_a + 1) * (g_b + 1) / ((g_a + g_b + 1) * longest) * decay


def reconstruction_weights(stored: Sequence[tuple[float, float]], targets: Sequence[tuple[float, float]]) -> Tensor:
    """Weights x `(num_stored, num_targets)`, float64: the average of target j is sum_i x_ij * (stored average i).

    `stored` and `targets` hold (images, sigma_rel). Each column minimizes the L2 distance of profiles
    ||sum_i x_i p_i - p_target|| and is then divided by its sum, so that it sums to 1. Stored entries later than
    the target get exactly 0; a stored entry equal to the target gets exactly 1 and the others 0.
    Source: EDM2, algorithm 3 (without the division).

    Raises:
        ValueError: for a time that is not positive, for a sigma_rel outside (0, 12^-0.5), and for a target that no
            stored entry precedes.
    """
    times, gammas = _profiles(stored)
    weights = torch.zeros(len(stored), len(targets), dtype=torch.float64)
    for column, (images, width) in enumerate(targets):
        same = [i for i, (t, s) in enumerate(stored) if t == images and math.isclose(s, width, rel_tol=1e-9)]
        if same:
            weights[same[0], column] = 1
            continue
        earlier = times <= images
        if not earlier.any():
            raise ValueError(f"no stored average precedes images={images:g}")
        weights[earlier, column] = _solve(times[earlier] / images, gammas[earlier], gamma(width))
    return weights


def profile_error(stored: Sequence[tuple[float, float]], target: tuple[float, float]) -> float:
    """Relative L2 error ||sum_i x_i p_i - p_target|| / ||p_target|| of the profile that can be rebuilt from `stored`.

    x are the `reconstruction_weights`. Exactly 0 when the target is stored; below about 1e-7 it is rounding.

    Raises:
        ValueError: as they do.
    """
    weights = reconstruction_weights(stored, [target])[:, 0]
    used = weights != 0
    if weights.max() == 1 and used.sum() == 1 and target in stored:
        return 0.0
    times, gammas = _profiles([*(pair for pair, keep in zip(stored, used.tolist(), strict=True) if keep), target])
    times = times / times[-1]
    gram = inner_product(times[:, None], gammas[:, None], times, gammas)
    # ||residual||^2 = y' G y with y = (x, -1); summed over eigenvectors no term can be negative
    eigenvalues, eigenvectors = torch.linalg.eigh(gram)
    residual = eigenvectors.mT @ torch.cat([weights[used], -weights.new_ones(1)])
    return float(((eigenvalues.clamp(min=0) * residual**2).sum() / gram[-1, -1]).sqrt())


def _profiles(pairs: Sequence[tuple[float, float]]) -> tuple[Tensor, Tensor]:
    """Times `(n,)` and exponents `(n,)`, float64, of (images, sigma_rel) pairs."""
    for images, _ in pairs:
        if not 0 < images < math.inf:
            raise ValueError(f"an average needs a positive number of images, got {images}")
    times = torch.tensor([images for images, _ in pairs], dtype=torch.float64)
    return times, torch.tensor([gamma(width) for _, width in pairs], dtype=torch.float64)


def _solve(times: Tensor, gammas: Tensor, target_gamma: float) -> Tensor:
    """Best weights `(n,)`, divided by their sum, for the profile (time 1, `target_gamma`) from `times` <= 1.

    The Gram matrix is scaled to a unit diagonal and inverted on its numerical range only, so that profiles that
    nearly coincide share their weight instead of fighting with huge opposite ones.
    """
    gram = inner_product(times[:, None], gammas[:, None], times, gammas)
    scale = gram.diagonal().rsqrt()
    eigenvalues, eigenvectors = torch.linalg.eigh(scale[:, None] * gram * scale)
    keep = eigenvalues > eigenvalues[-1] * len(times) * torch.finfo(torch.float64).eps
    basis = scale[:, None] * eigenvectors[:, keep] * eigenvalues[keep].rsqrt()
    weights = basis @ (basis.mT @ inner_product(times, gammas, 1.0, target_gamma))
    return weights / weights.sum()


def half_life_retention(previous: int, current: int, *, half_life: float = 500_000, ramp: float = 0.05) -> float:
    """Fraction 2^(-(current - previous) / min(half_life, ramp previous)) of the old average that survives an update.

    `previous` and `current` are the images seen at the update before and at this one; the first keeps nothing.

    Raises:
        ValueError: unless 0 <= previous <= current and current > 0.
    """
    if not (0 <= previous <= current and current > 0):
        raise ValueError(f"an update of an average must move forward in images, got {previous} -> {current}")
    h = min(half_life, ramp * previous)
    return float(0.5 ** ((current - previous) / h)) if h else 0.0


def half_life_width(images: int, *, half_life: float = 500_000, ramp: float = 0.05) -> float:
    """Relative standard deviation of the profile after `images`, for updates in small steps.

    Of s = images - t, the age of the weights that are averaged: a power profile on [0, T0], T0 = half_life / ramp, with
    the share e^(-k a) and the age a more, k = ln(2) / half_life, a = images - T0 > 0; and k e^(-k s) on [0, a].
    """
    g, k = math.log(2) / ramp - 1, math.log(2) / half_life
    T0 = min(half_life / ramp, images)
    a = images - T0
    left, power, squared = math.exp(-k * a), T0 / (g + 2), T0**2 * 2 / ((g + 2) * (g + 3))  # share, E[s], E[s^2]
    mean = (1 - (1 + k * a) * left) / k + left * (a + power)
    square = (2 - (2 + 2 * k * a + (k * a) ** 2) * left) / k**2 + left * (a**2 + 2 * a * power + squared)
    return math.sqrt(max(square - mean**2, 0.0)) / images
