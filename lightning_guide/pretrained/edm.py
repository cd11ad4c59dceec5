"""Snapshots of EDM (2022), pickles that carry source code, as denoisers; nothing in them is executed.

Karras et al. 2022, https://arxiv.org/abs/2206.00364: the networks of table 8, with the preconditionings of table 1.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch
from torch import Tensor

from lightning_guide.noise import Grid, KarrasGrid
from lightning_guide.preconditioning import EDM, Coefficients, Preconditioned, Preconditioning
from lightning_guide.pretrained.edm_adm import read_edm_adm
from lightning_guide.pretrained.edm_ddpmpp import read_edm_ddpmpp
from lightning_guide.pretrained.edm_layout import check_filters, find_kind
from lightning_guide.runs.edm2_pickle import Stored, read_edm2_pickle, tensors_of
from lightning_guide.utils.errors import did_you_mean

__all__ = ["ContinuousVE", "ContinuousVP", "read_edm"]


class ContinuousVP(Preconditioning):
    """Score SDE's continuous VP model: c_skip = 1, c_out = -s, c_in = 1 / sqrt(1 + s^2), c_noise = 999 t(s).

    t(s) = (sqrt(b^2 + 2 B ln(1 + s^2)) - b) / B with b = `beta_min` and B = `beta_d` (EDM, table 1; M = 1000).
    """

    def __init__(self, *, beta_d: float = 19.9, beta_min: float = 0.1) -> None:
        """Set slope and start of beta(t) = beta_min + beta_d t, t <= 1."""
        self.beta_d, self.beta_min = beta_d, beta_min
        self.sigma_max = math.sqrt(math.expm1(beta_d / 2 + beta_min))

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """Return the coefficients at `sigma` (*); float64, since t is a small difference."""
        s = sigma.to(torch.float64)
        t = ((self.beta_min**2 + 2 * self.beta_d * (s**2).log1p()).sqrt() - self.beta_min) / self.beta_d
        return Coefficients(torch.ones_like(s), -s, (1 + s**2).rsqrt(), 999 * t)


class ContinuousVE(Preconditioning):
    """Score SDE's continuous VE model: c_skip = 1, c_out = s, c_in = 1, c_noise = ln(s / 2) (EDM, table 1)."""

    def __init__(self, *, sigma_min: float = 0.02, sigma_max: float = 100.0) -> None:
        """Set the range of noise levels of the training.

        Raises:
            ValueError: unless it is positive and ascends.
        """
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f"ContinuousVE needs 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def grid(self, num_steps: int) -> Grid:
        """Return EDM's grid, within the range."""
        return KarrasGrid(num_steps, sigma_min=self.sigma_min, sigma_max=min(80.0, self.sigma_max))

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """Return the coefficients at `sigma` (*)."""
        one = torch.ones_like(sigma)
        return Coefficients(one, sigma, one, (sigma / 2).log())


def read_edm(place: str, *, dtype: str = "float32") -> Preconditioned:
    """Return the denoiser of a snapshot with a DDPM++, an NCSN++ or an ADM network.

    Raises:
        ValueError: if the file is no such snapshot, naming what it asks for, or the first weight that is missing or
            wrong, or the preconditioning or layer that is not known.
    """
    if not Path(place).is_file():
        raise ValueError(f"{place} does not exist{did_you_mean(place)}; expected a published snapshot, a pickle")
    stored = read_edm2_pickle(place, kind="EDM snapshot")["ema"]
    try:
        preconditioning = _preconditioning(stored, place)
        named = {re.sub(r"^model\.", "", name): tensor for name, tensor in tensors_of(stored)}
        filters = {name: tensor for name, tensor in named.items() if name.endswith("resample_filter")}
        tensors = {name: tensor for name, tensor in named.items() if name not in filters}
        kind = find_kind(tensors, place)
        check_filters(filters, kind, place)
        network = read_edm_adm(tensors, place) if kind == "ADM" else read_edm_ddpmpp(tensors, kind, place)
    except ValueError:
        raise
    except Exception as error:  # a damaged file can describe anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"{place}: the network in it cannot be built again: {reason}") from None
    for parameter in network.parameters():  # frequencies stay float32
        parameter.data = parameter.to(getattr(torch, dtype))
    return Preconditioned(network, preconditioning, sigma_data=preconditioning.sigma_data or 0.5).eval()


def _preconditioning(stored: Stored, place: str) -> Preconditioning:
    def number(name: str, default: float) -> float:
        value = stored.state.get(name, default)
        if not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError(f"{place}: {name} is {value!r}; expected a positive number")
        return float(value)

    if stored.class_name == "EDMPrecond":
        return EDM(number("sigma_data", 0.5))
    if stored.class_name == "VPPrecond":
        return ContinuousVP(beta_d=number("beta_d", 19.9), beta_min=number("beta_min", 0.1))
    if stored.class_name == "VEPrecond":
        return ContinuousVE(sigma_min=number("sigma_min", 0.02), sigma_max=number("sigma_max", 100.0))
    raise ValueError(f"{place} holds a {stored.class_name}; supported: EDMPrecond, VPPrecond, VEPrecond")
