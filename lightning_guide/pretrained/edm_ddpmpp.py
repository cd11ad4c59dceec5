"""EDM's DDPM++ and NCSN++ networks as `DDPMpp` and `NCSNpp`: sizes from shapes, and names."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_guide.networks.ddpmpp import DDPMpp
from lightning_guide.networks.ncsnpp import NCSNpp
from lightning_guide.pretrained.edm_layout import BLOCK, Kind, image_side, outer_layers, sorted_rows
from lightning_guide.pretrained.published import Rule, assign_weights, rename

__all__ = ["read_edm_ddpmpp"]


def read_edm_ddpmpp(tensors: Mapping[str, Tensor], kind: Kind, file: str) -> DDPMpp:
    """Return the network of a `kind`, DDPM++ or NCSN++, with the stored `tensors` as its weights.

    Raises:
        ValueError: naming the first weight that is missing, wrong or of no known layer.
    """
    with torch.device("meta"):  # only names and shapes are needed
        network = _network(tensors, NCSNpp if kind == "NCSN++" else DDPMpp)
    rules = _RULES | {
        rf"{re.escape(name)}\.(weight|bias)": rf"{place}.\1" for place, name in outer_layers(tensors, file).items()
    }
    assign_weights(network, rename(tensors, rules, file=file, kind=f"a network of the kind {kind}"), file=file)
    return network


def _network(tensors: Mapping[str, Tensor], network: type[DDPMpp]) -> DDPMpp:
    """Return the network, its sizes those of the weights."""
    first = next(name for name in tensors if re.fullmatch(r"enc\.\d+x\d+_conv\.weight", name))
    blocks = {
        (int(match[1]), int(match[2])): tensor
        for name, tensor in tensors.items()
        if (match := re.fullmatch(r"enc\.(\d+)x\d+_block(\d+)\.conv1\.weight", name))
    }
    sides = sorted({side for side, _ in blocks}, reverse=True)
    channels, inputs = tensors[first].shape[:2]
    side = image_side(tensors)
    labels, augmentation = tensors.get("map_label.weight"), tensors.get("map_augment.weight")
    return network(
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
    return {f"{_side(match)}.{match[2]}.attention.qkv.{match[5]}": sorted_rows(tensor)}


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
    return {f"{_side(match)}.{match[2]}.{_LAYERS[match[5]]}.{match[6]}": tensor}


_RULES: dict[str, str | Rule] = {
    r"map_layer0\.weight": _halves(1, "embedding_noise.first.weight"),
    r"map_layer0\.bias": "embedding_noise.first.bias",
    r"map_layer1\.(.*)": r"embedding_noise.second.\1",
    r"map_label\.(.*)": _halves(0, r"embedding_label.\1"),
    r"map_augment\.weight": _halves(0, "embedding_augmentation.weight"),
    r"enc\.\d+x\d+_conv\.(.*)": r"input.\1",
    r"map_noise\.freqs": "embedding_noise.waves.frequencies",
    BLOCK + r"\.qkv\.(weight|bias)": _qkv,
    BLOCK + rf"\.({'|'.join(_LAYERS)})\.(weight|bias)": _layer,
}
