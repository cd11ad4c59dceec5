"""Checkpoints of MDM, the motion diffusion model, as denoisers of normalized motion features.

Tevet et al. 2022, https://arxiv.org/abs/2209.14916: prediction of x_0, cosine betas. The names of weights in files were
not compared with a published one; those inside the encoder are the ones of `torch.nn.TransformerEncoder`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_guide.networks.mdm import MDM, sinusoids
from lightning_guide.noise_schedule import NoiseSchedule
from lightning_guide.preconditioning import Preconditioned, SamplePrediction
from lightning_guide.pretrained.published import assign_weights, read_state_dict, rename, with_defaults

__all__ = ["FRAMES", "read_mdm"]

FRAMES = 196  # longest motion of HumanML3D, 9.8 seconds


def read_mdm(
    place: str | Path,
    *,
    dtype: str = "float32",
    data_shape: Sequence[int] | None = None,
    constants: Mapping[str, Any] | None = None,
) -> Preconditioned:
    """Return the denoiser of an MDM checkpoint with a transformer encoder, with or without texts.

    Sizes are read from the shapes. `data_shape` is (features, frames), by default 196 frames. The constants are
    `heads`, 4 as published, and `timesteps`, 1000; 50 for the checkpoints of 50 steps.

    Raises:
        ValueError: if the file is no such checkpoint, naming the first weight that is missing or wrong.
    """
    tensors = read_state_dict(place)
    given = with_defaults(constants, file=place, heads=4, timesteps=1000)
    for name in [name for name in tensors if name.endswith("pos_encoder.pe")]:
        _check_positions(tensors.pop(name), name, place)
    settings = _settings(tensors, place) | {"heads": given["heads"]}
    features = settings.pop("features")
    shape = (features, FRAMES) if data_shape is None else tuple(data_shape)
    if len(shape) != 2 or shape[0] != features or shape[1] < 1:
        raise ValueError(f"{place}: data_shape is {shape}; expected ({features}, frames)")
    with torch.device("meta"):
        network = MDM(shape, null_condition=settings["token_channels"] > 0, **settings)
    assign_weights(network, rename(tensors, _RULES, file=place, kind="MDM's transformer encoder"), file=place)
    preconditioning = SamplePrediction(NoiseSchedule("cosine", num_timesteps=given["timesteps"]))
    return Preconditioned(network.to(getattr(torch, dtype)), preconditioning, sigma_data=1.0).eval()


def _settings(tensors: Mapping[str, Tensor], place: str | Path) -> dict[str, Any]:
    """Return the sizes of the network by the shapes."""
    needed = ("input_process.poseEmbedding.weight", "seqTransEncoder.layers.0.linear1.weight")
    if missing := [name for name in needed if name not in tensors]:
        raise ValueError(f"{place}: {missing[0]} is missing; expected a checkpoint of MDM with a transformer encoder")
    channels, features = tensors[needed[0]].shape
    text = tensors.get("embed_text.weight")
    return {
        "features": features,
        "channels": channels,
        "depth": len({name.split(".")[2] for name in tensors if name.startswith("seqTransEncoder.layers.")}),
        "hidden": len(tensors[needed[1]]),
        "token_channels": 0 if text is None else text.shape[-1],
    }


def _check_positions(table: Tensor, name: str, place: str | Path) -> None:
    """Refuse a table of positions (length, 1, channels) that is not the one of the network."""
    rows = table.reshape(-1, table.shape[-1])
    places = torch.arange(len(rows), dtype=torch.float64)
    if not torch.allclose(rows.double(), sinusoids(places, rows.shape[1]), atol=1e-3):
        raise ValueError(f"{place}: {name} are not the sines and cosines of {len(rows)} positions")


_RULES = {
    r"input_process\.poseEmbedding\.(.*)": r"input.\1",
    r"embed_timestep\.time_embed\.0\.(.*)": r"embedding_noise.first.\1",
    r"embed_timestep\.time_embed\.2\.(.*)": r"embedding_noise.second.\1",
    r"embed_text\.(.*)": r"embedding_text.\1",
    r"seqTransEncoder\.layers\.(\d+)\.self_attn\.in_proj_(.*)": r"blocks.\1.attention.qkv.\2",
    r"seqTransEncoder\.layers\.(\d+)\.self_attn\.out_proj\.(.*)": r"blocks.\1.attention.output.\2",
    r"seqTransEncoder\.layers\.(\d+)\.linear([12])\.(.*)": r"blocks.\1.mlp.fc\2.\3",
    r"seqTransEncoder\.layers\.(\d+)\.norm([12])\.(.*)": r"blocks.\1.norm\2.\3",
    r"output_process\.poseFinal\.(.*)": r"output.\1",
}
