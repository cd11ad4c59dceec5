"""Checkpoints of ADM, as its authors publish them, as denoisers.

Dhariwal and Nichol 2021, https://arxiv.org/abs/2105.05233. Published settings, of which the shapes tell most:

| pixels | heads | rows of attention | schedule |
|---|---|---|---|
| 64 | of 64 channels | q, k, v | cosine |
| 128 | 4 | by head | linear |
| 256, 512 | of 64 channels | by head | linear |

Respaced timesteps are a grid: "linspace", the default, or the
"leading" ones of "ddim" spacings (`TimestepGrid`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_guide.noise_schedule import NoiseSchedule
from lightning_guide.preconditioning import EpsilonPrediction, Preconditioned
from lightning_guide.pretrained.adm_layout import Layout, find_layout, rename_adm
from lightning_guide.pretrained.diffusers_network import DiffusersNetwork
from lightning_guide.pretrained.published import assign_weights, read_state_dict, with_defaults, without_weights

__all__ = ["ADM", "adapt_unet", "filled_adm", "length", "read_adm", "settings"]


class ADM(DiffusersNetwork):
    """ADM's U-Net as diffusers' UNet2DModel, with what that class cannot express."""

    def __init__(
        self, config: Mapping[str, Any], *, heads: int | None = None, time_channels: int | None = None
    ) -> None:
        """Build the network with random weights.

        Args:
            config: of a UNet2DModel.
            heads: of every attention; None: `attention_head_dim` channels each.
            time_channels: cosines and sines of the time; None: as many as channels of the first level.
        """
        self.heads, self.time_channels = heads, time_channels
        super().__init__("UNet2DModel", config)

    def _insert(self, model: Any) -> None:
        adapt_unet(model, self.heads, self.time_channels)
        super()._insert(model)


def adapt_unet(model: Any, heads: int | None, time_channels: int | None) -> None:
    """Set the heads and the channels of the time of a UNet2DModel."""
    for module in model.modules():
        if heads is not None and hasattr(module, "to_q"):
            module.heads = heads
    if time_channels not in (None, model.time_embedding.linear_1.in_features):
        width = model.time_embedding.linear_2.out_features
        model.time_proj = type(model.time_proj)(time_channels, True, 0)
        model.time_embedding = type(model.time_embedding)(time_channels, width)


def read_adm(place: str, *, dtype: str = "float32", constants: Mapping[str, Any] | None = None) -> Preconditioned:
    """Return the denoiser of an ADM checkpoint, with the variances that it may predict.

    Constants, what the shapes do not tell: `size` (pixels; by default the lowest level has 8, if the attention is at
    32, 16 and 8 pixels as published), `heads`, `by_head` and `schedule` (by default those of the table by the size).

    Raises:
        ValueError: if the file is no such checkpoint, naming the first weight that is missing or wrong.
    """
    tensors = read_state_dict(place)
    layout = find_layout(tensors, place)
    given = settings(layout, place, constants)
    network = filled_adm(
        ADM, tensors, layout, size=given["size"], heads=given["heads"], by_head=given["by_head"], file=place
    )
    preconditioning = EpsilonPrediction(NoiseSchedule(given["schedule"]))
    return Preconditioned(network.to(getattr(torch, dtype)), preconditioning, sigma_data=0.5).eval()


def filled_adm(
    kind: type[ADM],
    tensors: Mapping[str, Tensor],
    layout: Layout,
    *,
    size: int,
    heads: int | None,
    by_head: bool,
    file: str | Path,
) -> ADM:
    """Return the network of a `kind` for images of `size` pixels with the published `tensors` as its weights.

    `heads` as of `ADM`, None for heads of 64 channels; `by_head` as of `rename_adm`.

    Raises:
        ValueError: naming the first weight that is missing or wrong.
    """
    config = layout.config(tensors, sample_size=size, out_channels=length(tensors, "out.2.bias", file))
    config |= {"attention_head_dim": 64 if heads is None else 1}
    with without_weights():
        network = kind(config, heads=heads, time_channels=tensors["time_embed.0.weight"].shape[1])
    renamed = rename_adm(
        tensors,
        layout,
        heads=lambda channels: heads or channels // 64,
        by_head=by_head,
        file=file,
        more={r"out\.2\.(.*)": r"conv_out.\1"},
    )
    assign_weights(network.model, renamed, file=file)
    return network


def settings(layout: Layout, place: str, constants: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what the shapes do not tell: size, heads, by_head and schedule, replaced by the `constants` given.

    Raises:
        ValueError: if there is no such constant, or the size is unknown.
    """
    known = with_defaults(constants, file=place, size=None, heads=None, by_head=None, schedule=None)
    levels = len(layout.attention)
    if known["size"] is None:
        if list(layout.attention) != [level >= levels - 3 for level in range(levels)]:
            raise ValueError(f"{place}: its attention is not at 32, 16 and 8 pixels; expected the constant size")
        known["size"] = 8 << (levels - 1)
    if known["heads"] is None and known["size"] == 128:
        known["heads"] = 4
    by_size = {"by_head": known["size"] != 64, "schedule": "cosine" if known["size"] == 64 else "linear"}
    return known | {name: value for name, value in by_size.items() if known[name] is None}


def length(tensors: Mapping[str, Tensor], name: str, place: str | Path) -> int:
    """Return the length of a tensor.

    Raises:
        ValueError: if it is missing.
    """
    if name not in tensors:
        raise ValueError(f"{place}: {name} is missing; expected another kind of ADM checkpoint")
    return len(tensors[name])
