"""Checkpoints of DiT and SiT, as their authors publish them, as denoisers.

DiT: Peebles and Xie 2023, https://arxiv.org/abs/2212.09748 (linear schedule of 1000 timesteps, noise and variance).
SiT: Ma et al. 2024, https://arxiv.org/abs/2401.08740 (linear path, velocity, time from noise 0 to data 1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_guide.noise_schedule import NoiseSchedule
from lightning_guide.preconditioning import EpsilonPrediction, Preconditioned, Preconditioning, RectifiedFlow
from lightning_guide.pretrained.diffusers_network import DiffusersNetwork
from lightning_guide.pretrained.published import (
    Rule,
    assign_weights,
    read_state_dict,
    rename,
    with_defaults,
    without_weights,
)

__all__ = ["read_dit", "read_sit"]


def read_dit(
    place: str | Path, *, dtype: str = "float32", constants: Mapping[str, Any] | None = None
) -> Preconditioned:
    """Return the denoiser of a DiT checkpoint, of latents scaled by 0.18215, with the class -1 for none.

    Sizes are read from the shapes. The constant `heads` is 16 for XL, with its 1152 channels, and one for each 64
    channels else, as published.

    Raises:
        ValueError: if the file is no such checkpoint, naming the first weight that is missing or wrong.
    """
    return Preconditioned(_network(place, dtype, constants), EpsilonPrediction(NoiseSchedule()), sigma_data=1.0)


def read_sit(
    place: str | Path, *, dtype: str = "float32", constants: Mapping[str, Any] | None = None
) -> Preconditioned:
    """Return the denoiser of an SiT checkpoint on the linear path that predicts the velocity, as `read_dit`.

    Raises:
        ValueError: as `read_dit`.
    """
    preconditioning: Preconditioning = RectifiedFlow(scale=1.0, reverse=True)
    return Preconditioned(_network(place, dtype, constants), preconditioning, sigma_data=1.0)


def _network(path: str | Path, dtype: str, constants: Mapping[str, Any] | None) -> DiffusersNetwork:
    tensors = read_state_dict(path)
    positions = tensors.pop("pos_embed", None)
    config = _config(tensors, positions, path, **with_defaults(constants, file=path, heads=None))
    with without_weights():
        network = DiffusersNetwork("DiTTransformer2DModel", config)
    assign_weights(network.model, rename(tensors, _RULES, file=path, kind="a DiT"), file=path)
    sines = network.model.get_buffer("pos_embed.pos_embed")
    if positions is None or not torch.allclose(positions.reshape(sines.shape).float(), sines, atol=1e-4):
        raise ValueError(f"{path}: pos_embed are not the sines and cosines of a {config['sample_size']}-pixel grid")
    return network.to(getattr(torch, dtype)).eval()


def _config(
    tensors: Mapping[str, Tensor], positions: Tensor | None, path: str | Path, heads: int | None
) -> dict[str, Any]:
    """Return the config of diffusers by the shapes."""
    needed = ("x_embedder.proj.weight", "y_embedder.embedding_table.weight", "final_layer.linear.weight")
    missing = [name for name in needed if name not in tensors] + ["pos_embed"] * (positions is None)
    if missing or positions is None:
        raise ValueError(f"{path}: {missing[0]} is missing; expected a checkpoint of DiT or SiT")
    channels, inputs, patch = tensors[needed[0]].shape[:3]
    heads = heads or (16 if channels == 1152 else max(channels // 64, 1))
    if channels % heads:
        raise ValueError(f"{path}: {channels} channels are no multiple of {heads} heads; expected the constant heads")
    return {
        "num_attention_heads": heads,
        "attention_head_dim": channels // heads,
        "in_channels": inputs,
        "out_channels": len(tensors[needed[2]]) // patch**2,
        "num_layers": len({name.split(".")[1] for name in tensors if name.startswith("blocks.")}),
        "sample_size": math.isqrt(positions.shape[-2]) * patch,
        "patch_size": patch,
        "num_embeds_ada_norm": len(tensors[needed[1]]) - 1,
    }


def _thirds(match: Any, tensor: Tensor) -> Mapping[str, Tensor]:
    names = (f"transformer_blocks.{match[1]}.attn1.to_{part}.{match[2]}" for part in "qkv")
    return dict(zip(names, tensor.reshape(3, -1, *tensor.shape[1:]).unbind(), strict=True))


_RULES: Mapping[str, str | Rule] = {
    r"x_embedder\.(.*)": r"pos_embed.\1",
    r"t_embedder\.mlp\.0\.(.*)": r"embedder.timestep_embedder.linear_1.\1",
    r"t_embedder\.mlp\.2\.(.*)": r"embedder.timestep_embedder.linear_2.\1",
    r"y_embedder\.(.*)": r"embedder.class_embedder.\1",
    r"blocks\.(\d+)\.adaLN_modulation\.1\.(.*)": r"transformer_blocks.\1.norm1.linear.\2",
    r"blocks\.(\d+)\.attn\.qkv\.(.*)": _thirds,
    r"blocks\.(\d+)\.attn\.proj\.(.*)": r"transformer_blocks.\1.attn1.to_out.0.\2",
    r"blocks\.(\d+)\.mlp\.fc1\.(.*)": r"transformer_blocks.\1.ff.net.0.proj.\2",
    r"blocks\.(\d+)\.mlp\.fc2\.(.*)": r"transformer_blocks.\1.ff.net.2.\2",
    r"final_layer\.adaLN_modulation\.1\.(.*)": r"proj_out_1.\1",
    r"final_layer\.linear\.(.*)": r"proj_out_2.\1",
}
