"""The layout of ADM's U-Nets, found in the shapes of their weights, and the names of these in diffusers.

Dhariwal and Nichol 2021, https://arxiv.org/abs/2105.05233, section 3 (BigGAN blocks that resample, adaptive group
normalization, attention at several sizes).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_guide.pretrained.published import Rule, rename

__all__ = ["Layout", "find_layout", "rename_adm"]


@dataclass(frozen=True)
class Layout:
    """Sizes of a U-Net, or of its encoder.

    Attributes:
        channels: of each level.
        attention: whether the level has attention.
        blocks: residual blocks of a level.
        modules: name of each module in diffusers, by its published name.
    """

    channels: tuple[int, ...]
    attention: tuple[bool, ...]
    blocks: int
    modules: Mapping[str, str]

    def config(self, tensors: Mapping[str, Tensor], **more: Any) -> dict[str, Any]:
        """Return the config of a UNet2DModel."""
        labels = tensors.get("label_emb.weight")
        return {
            "in_channels": tensors["input_blocks.0.0.weight"].shape[1],
            "block_out_channels": list(self.channels),
            "layers_per_block": self.blocks,
            "down_block_types": [("Attn" if each else "Resnet") + _DOWN[each] for each in self.attention],
            "up_block_types": [("Attn" if each else "Resnet") + _UP[each] for each in reversed(self.attention)],
            "downsample_type": "resnet",
            "upsample_type": "resnet",
            "resnet_time_scale_shift": "scale_shift",
            "attn_norm_num_groups": 32,  # else the attention in the middle has no normalization
            "time_embedding_dim": len(tensors["time_embed.0.weight"]),
            "num_class_embeds": None if labels is None else len(labels),
            **more,
        }


_DOWN = {True: "DownBlock2D", False: "DownsampleBlock2D"}


_UP = {True: "UpBlock2D", False: "UpsampleBlock2D"}


def find_layout(tensors: Mapping[str, Tensor], file: str | Path) -> Layout:
    """Return the layout of a U-Net with output blocks, or of an encoder without.

    Raises:
        ValueError: if the weights are not those of ADM with blocks that resample.
    """
    for name in ("input_blocks.0.0.weight", "time_embed.0.weight", "middle_block.1.qkv.weight"):
        if name not in tensors:
            raise ValueError(f"{file}: {name} is missing; expected a checkpoint of ADM with attention in the middle")
    inputs = _blocks(tensors, "input_blocks")
    period = _period(tensors, inputs)
    if period is None:
        raise ValueError(f"{file}: its {inputs} input blocks form no levels; expected ADM with blocks that resample")
    levels = [range(start, start + period) for start in range(0, inputs, period)]
    blocks, modules = period - 1, {"input_blocks.0.0": "conv_in"}
    for level, places in enumerate(levels):
        for i, place in enumerate(places[1:]):
            modules[f"input_blocks.{place}.0"] = f"down_blocks.{level}.resnets.{i}"
            modules[f"input_blocks.{place}.1"] = f"down_blocks.{level}.attentions.{i}"
        modules[f"input_blocks.{places.stop}.0"] = f"down_blocks.{level}.downsamplers.0"
        for i, place in enumerate(places):
            modules[f"output_blocks.{place}.0"] = f"up_blocks.{level}.resnets.{i}"
            last = f"output_blocks.{place}.1.qkv.weight" not in tensors
            modules[f"output_blocks.{place}.1"] = f"up_blocks.{level}." + (
                "upsamplers.0" if last else f"attentions.{i}"
            )
            modules[f"output_blocks.{place}.2"] = f"up_blocks.{level}.upsamplers.0"
    for place, name in enumerate(("resnets.0", "attentions.0", "resnets.1")):
        modules[f"middle_block.{place}"] = f"mid_block.{name}"
    first = [places[1] for places in levels]
    channels = tuple(len(tensors[f"input_blocks.{i}.0.out_layers.3.bias"]) for i in first)
    attention = tuple(f"input_blocks.{i}.1.qkv.weight" in tensors for i in first)
    return Layout(channels, attention, blocks, modules)


def _blocks(tensors: Mapping[str, Tensor], kind: str) -> int:
    return len({name.split(".")[1] for name in tensors if name.startswith(f"{kind}.")})


def _period(tensors: Mapping[str, Tensor], inputs: int) -> int | None:
    """Return the number of input blocks of a level: the first convolution, or one that halves, and residual blocks.

    Blocks that halve have neither attention nor a change of channels; the blocks of a level all have attention or none.
    """

    def attention(i: int) -> bool:
        return f"input_blocks.{i}.1.qkv.weight" in tensors

    def fits(period: int) -> bool:
        halving = range(period, inputs, period)
        plain = not any(attention(i) or f"input_blocks.{i}.0.skip_connection.weight" in tensors for i in halving)
        levels = [{attention(i) for i in range(at + 1, at + period)} for at in range(0, inputs, period)]
        return plain and inputs % period == 0 and all(len(each) == 1 for each in levels)

    outputs = range(_blocks(tensors, "output_blocks"))
    doubling = (i for i in outputs if {f"output_blocks.{i}.{j}.in_layers.0.weight" for j in (1, 2)} & tensors.keys())
    if outputs:
        found = next(doubling, inputs - 1) + 1
        return found if fits(found) else None
    return next((period for period in range(inputs, 1, -1) if fits(period)), None)


_LAYERS = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
    "norm": "group_norm",
}


def rename_adm(
    tensors: Mapping[str, Tensor],
    layout: Layout,
    *,
    heads: Callable[[int], int],
    by_head: bool,
    file: str | Path,
    more: Mapping[str, str | Rule],
) -> dict[str, Tensor]:
    """Return `tensors` under their names in diffusers.

    Args:
        tensors: the published weights.
        layout: their layout.
        heads: number of heads for a number of channels.
        by_head: order of the rows of queries, keys and values: (head, q k v, channel), else (q k v, head, channel).
        file: named in errors.
        more: further rules.

    Raises:
        ValueError: naming the first tensor that is no weight of ADM.
    """

    def block(match: re.Match[str], tensor: Tensor) -> Mapping[str, Tensor]:
        module, layer = layout.modules.get(match[1]), match[2]
        if module is None:
            raise ValueError(f"{file}: it has a tensor {match[0]}, which an ADM of its other sizes does not have")
        if not layer:  # the first convolution
            return {f"{module}.{match[3]}": tensor}
        if layer == "qkv":
            rows = tensor.reshape(heads(len(tensor) // 3) if by_head else 1, 3, -1, *tensor.shape[1:2]).unbind(1)
            return {
                f"{module}.to_{part}.{match[3]}": each.flatten(0, 1) for part, each in zip("qkv", rows, strict=True)
            }
        if layer == "proj_out":
            return {f"{module}.to_out.0.{match[3]}": tensor.flatten(1) if tensor.ndim > 1 else tensor}
        return {f"{module}.{_LAYERS[layer]}.{match[3]}": tensor}

    layers = "|".join(re.escape(each) for each in (*_LAYERS, "qkv", "proj_out"))
    rules: dict[str, str | Rule] = {
        rf"((?:input_blocks|output_blocks)\.\d+\.\d+|middle_block\.\d+)\.(?:({layers})\.)?(weight|bias)": block,
        r"time_embed\.0\.(.*)": r"time_embedding.linear_1.\1",
        r"time_embed\.2\.(.*)": r"time_embedding.linear_2.\1",
        r"label_emb\.weight": "class_embedding.weight",
        r"out\.0\.(.*)": r"conv_norm_out.\1",
    }
    return rename(tensors, rules | dict(more), file=file, kind="an ADM")
