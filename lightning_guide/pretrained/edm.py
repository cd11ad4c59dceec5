"""Snapshots of EDM (2022), pickles that carry source code, as denoisers; nothing in them is executed.

Karras et al. 2022, https://arxiv.org/abs/2206.00364: the DDPM++ networks, with the preconditionings of table 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lightning_guide.networks.ddpmpp import DDPMpp
from lightning_guide.preconditioning import EDM, Coefficients, Preconditioned, Preconditioning
from lightning_guide.pretrained.published import Rule, assign_weights, rename
from lightning_guide.runs.edm2_pickle import Stored, read_edm2_pickle, tensors_of

__all__ = ["ContinuousVP", "read_edm"]


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


def read_edm(place: str, *, dtype: str = "float32") -> Preconditioned:
    """Return the denoiser of a snapshot with a DDPM++ network.

    Raises:
        ValueError: if the file is no such snapshot, naming what it asks for, or the first weight that is missing or
            wrong; if its network is an NCSN++ or an ADM.
    """
    if not Path(place).is_file():
        raise ValueError(f"{place} does not exist; expected a published snapshot, a pickle")
    stored = read_edm2_pickle(place, kind="EDM snapshot")["ema"]
    try:
        preconditioning = _preconditioning(stored, place)
        named = {re.sub(r"^model\.", "", name): tensor for name, tensor in tensors_of(stored)}
        tensors = {name: tensor for name, tensor in named.items() if not name.endswith("resample_filter")}
        _check_kind(tensors, place)
        with torch.device("meta"):  # only names and shapes are needed
            network = _network(tensors)
        renamed = rename(tensors, _RULES, file=place, kind="a DDPM++ network")
    except ValueError:
        raise
    except Exception as error:  # a damaged file can describe anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"{place}: the network in it cannot be built again: {reason}") from None
    assign_weights(network, renamed, file=place)
    denoiser = Preconditioned(network, preconditioning, sigma_data=preconditioning.sigma_data or 0.5)
    return denoiser.to(getattr(torch, dtype)).eval()


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
    raise ValueError(f"{place} holds a {stored.class_name}; supported: EDMPrecond, VPPrecond")


def _check_kind(tensors: Mapping[str, Tensor], place: str) -> None:
    """Refuse the other networks of EDM by their names."""
    fourier, skips = "map_noise.freqs" in tensors, any(re.match(r"enc\.\w+_aux", name) for name in tensors)
    if fourier or skips:
        raise ValueError(f"{place} holds an NCSN++ network; supported: DDPM++")
    if "map_layer0.weight" not in tensors or not any(re.match(r"dec\.\w+_aux_norm", name) for name in tensors):
        raise ValueError(f"{place} holds no DDPM++ network; EDM's ADM is not supported, and no other network is known")


def _network(tensors: Mapping[str, Tensor]) -> DDPMpp:
    """Return the network, its sizes those of the weights."""
    first = next(name for name in tensors if re.fullmatch(r"enc\.\d+x\d+_conv\.weight", name))
    blocks = {
        (int(match[1]), int(match[2])): tensor
        for name, tensor in tensors.items()
        if (match := re.fullmatch(r"enc\.(\d+)x\d+_block(\d+)\.conv1\.weight", name))
    }
    sides = sorted({side for side, _ in blocks}, reverse=True)
    channels, inputs = tensors[first].shape[:2]
    labels, augmentation = tensors.get("map_label.weight"), tensors.get("map_augment.weight")
    side = int(first.split(".")[1].split("x")[0])
    return DDPMpp(
        (inputs, side, side),
        num_classes=0 if labels is None else labels.shape[1],
        augmentation_channels=0 if augmentation is None else augmentation.shape[1],
        model_channels=channels,
        channel_mult=[len(blocks[side, 0]) // channels for side in sides],
        num_blocks=len(blocks) // len(sides),
        attention_resolutions=[side for side in sides if f"enc.{side}x{side}_block0.qkv.weight" in tensors],
    )


def _halves(dim: int, name: str) -> Rule:
    """Return the rule that exchanges sines and cosines, which are in the other order here."""

    def rule(match: re.Match[str], tensor: Tensor) -> Mapping[str, Tensor]:
        a, b = tensor.chunk(2, dim)
        return {match.expand(name): torch.cat([b, a], dim)}

    return rule


def _qkv(match: re.Match[str], tensor: Tensor) -> Mapping[str, Tensor]:
    """Sort rows (channel, q k v) as (q k v, channel)."""
    rows = tensor.reshape(-1, 3, *tensor.shape[1:]).transpose(0, 1).flatten(0, 1)
    return {f"{_side(match)}.{match[2]}.attention.qkv.{match[3]}": rows}


def _side(match: re.Match[str]) -> str:
    return {"enc": "encoder", "dec": "decoder"}[match[1]]


_LAYERS = {
    "norm0": "norm_in",
    "conv0": "residual_in",
    "affine": "modulation",
    "norm1": "norm_out",
    "conv1": "residual_out",
    "skip": "projection",
    "norm2": "attention.norm",
    "proj": "attention.output",
}


def _layer(match: re.Match[str], tensor: Tensor) -> Mapping[str, Tensor]:
    return {f"{_side(match)}.{match[2]}.{_LAYERS[match[3]]}.{match[4]}": tensor}


_BLOCK = r"(enc|dec)\.(\d+x\d+_(?:down|up|in\d|block\d+))\."
_RULES: Mapping[str, str | Rule] = {
    r"map_layer0\.weight": _halves(1, "embedding_noise.first.weight"),
    r"map_layer0\.bias": "embedding_noise.first.bias",
    r"map_layer1\.(.*)": r"embedding_noise.second.\1",
    r"map_label\.(.*)": _halves(0, r"embedding_label.\1"),
    r"map_augment\.weight": _halves(0, "embedding_augmentation.weight"),
    r"enc\.\d+x\d+_conv\.(.*)": r"input.\1",
    r"dec\.\d+x\d+_aux_norm\.(.*)": r"norm.\1",
    r"dec\.\d+x\d+_aux_conv\.(.*)": r"output.\1",
    _BLOCK + r"qkv\.(weight|bias)": _qkv,
    _BLOCK + rf"({'|'.join(_LAYERS)})\.(weight|bias)": _layer,
}
