"""The layout of EDM's networks in their pickles: blocks by their names, and the layers beside them by their structure.

Karras et al. 2022, https://arxiv.org/abs/2206.00364, table 8 (the three architectures and their filters).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

__all__ = ["BLOCK", "Kind", "check_filters", "find_kind", "image_side", "outer_layers", "sorted_rows"]

Kind = Literal["DDPM++", "NCSN++", "ADM"]

# enc or dec, name, side and kind of a block
BLOCK = r"(enc|dec)\.((\d+)x\d+_(down|up|in\d|block\d+))"

_FILTERS: dict[Kind, tuple[float, ...]] = {"DDPM++": (1, 1), "NCSN++": (1, 3, 3, 1), "ADM": (1, 1)}


def find_kind(tensors: Mapping[str, Tensor], file: str) -> Kind:
    """Return the kind of the network with these weights.

    NCSN++ has random frequencies; ADM modulates by scale and shift, so that its linear layers have twice as many rows.

    Raises:
        ValueError: if a part that all of them have is missing.
    """
    parts = {
        "first convolution": r"enc\.\d+x\d+_conv\.weight",
        "block in the encoder": r"enc\.\d+x\d+_block0\.conv1\.weight",
        "embedding of the noise": r"map_layer0\.weight",
    }
    for part, pattern in parts.items():
        if not any(re.fullmatch(pattern, name) for name in tensors):
            raise ValueError(f"{file}: its network has no {part} of a known name; expected {', '.join(_FILTERS)}")
    if "map_noise.freqs" in tensors:
        return "NCSN++"
    rows = {name: len(tensor) for name, tensor in tensors.items()}
    wide = (rows.get(name.replace("conv1", "affine")) == 2 * rows[name] for name in rows if "conv1.weight" in name)
    return "ADM" if all(wide) else "DDPM++"


def image_side(tensors: Mapping[str, Tensor]) -> int:
    """Return the side of the images."""
    name = next(name for name in tensors if re.fullmatch(r"enc\.\d+x\d+_conv\.weight", name))
    return int(name.split(".")[1].split("x")[0])


def check_filters(filters: Mapping[str, Tensor], kind: Kind, file: str) -> None:
    """Refuse resampling filters, as they are stored, other than those of a `kind`.

    Raises:
        ValueError: naming the first.
    """
    taps = torch.tensor(_FILTERS[kind])
    expected = torch.outer(taps, taps)
    for name, found in filters.items():
        if found.shape[-2:] != expected.shape or not torch.allclose(found / found.sum(), expected / expected.sum()):
            raise ValueError(f"{file}: {name} is not the filter of {kind}, {list(_FILTERS[kind])}")


def outer_layers(tensors: Mapping[str, Tensor], file: str) -> dict[str, str]:
    """Return the layers that are neither in blocks nor have known names: name here -> name in the file.

    Convolutions in the encoder belong to the block of the level before them in the file (`image_residuals.SIDE_down`).
    Of the others that with a vector of weights is the last normalization (`norm`), the other one the last convolution
    (`output`).

    Raises:
        ValueError: if two layers have the same place, or one of the last two is missing.
    """
    found: dict[str, str] = {}
    names = {"norm": "last normalization", "output": "last convolution"}
    level = ""
    for name, tensor in tensors.items():
        layer, _, parameter = name.rpartition(".")
        if match := re.match(rf"{BLOCK}\.", name):
            level = name.split(".")[1].split("_")[0] if match[1] == "enc" else level
        elif parameter == "weight" and not re.fullmatch(r"map_\w+|enc\.\d+x\d+_conv", layer):
            if layer.startswith("enc."):
                place = f"image_residuals.{level}_down"
            else:
                place = "norm" if tensor.ndim == 1 else "output"
            if place in found:
                what = names.get(place, place)
                raise ValueError(
                    f"{file}: {found[place]} and {layer} could both be its {what}; expected one such layer"
                )
            found[place] = layer
    for place, what in names.items():
        if place not in found:
            raise ValueError(f"{file}: its {what} is missing; expected one outside encoder and blocks")
    return found


def sorted_rows(tensor: Tensor) -> Tensor:
    """Sort the rows of attention, (channel, q k v), as (q k v, channel)."""
    return tensor.reshape(-1, 3, *tensor.shape[1:]).transpose(0, 1).flatten(0, 1)
