"""MDM written from its paper around torch's own transformer encoder, and random weights under their names in files.

The names outside the encoder are those of the published files as far as known; no file was at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.human_motions import write_moments

__all__ = ["direct_mdm", "mdm_weights", "write_mdm"]

ENCODER = "seqTransEncoder."


def mdm_weights(
    channels: int = 16,
    depth: int = 3,
    *,
    heads: int = 2,
    hidden: int = 24,
    features: int = 263,
    texts: int | None = 16,
    length: int = 300,
) -> dict[str, Tensor]:
    """Return the weights of a file."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = {
            "input_process.poseEmbedding.": nn.Linear(features, channels),
            "embed_timestep.time_embed.": nn.Sequential(
                nn.Linear(channels, channels), nn.SiLU(), nn.Linear(channels, channels)
            ),
            "output_process.poseFinal.": nn.Linear(channels, features),
            ENCODER: _encoder(channels, depth, heads, hidden),
        }
        if texts:
            parts["embed_text."] = nn.Linear(texts, channels)
        weights = {prefix + name: each for prefix, part in parts.items() for name, each in part.state_dict().items()}
        for name, weight in weights.items():
            if not weight.is_meta and ("bias" in name or "norm" in name):  # zeros and ones would hide mistakes
                weight.add_(0.3 * torch.randn(weight.shape))
    positions = _sines(torch.arange(length), channels)[:, None]
    return weights | {"sequence_pos_encoder.pe": positions, "embed_timestep.sequence_pos_encoder.pe": positions}


def direct_mdm(weights: Mapping[str, Tensor], x: Tensor, t: Tensor, text: Tensor | None, *, heads: int = 2) -> Tensor:
    """Return x_0 (B, features, frames), float64, for scaled `x`, timesteps `t` (B,) and vectors `text` (B, texts)."""
    w = {name: each.double() for name, each in weights.items()}

    def linear(name: str, value: Tensor) -> Tensor:
        return F.linear(value, w[f"{name}.weight"], w[f"{name}.bias"])

    channels = len(w["input_process.poseEmbedding.bias"])
    token = F.silu(linear("embed_timestep.time_embed.0", _sines(t, channels)))
    token = linear("embed_timestep.time_embed.2", token)
    if text is not None:
        token = token + linear("embed_text", text.double())
    frames = linear("input_process.poseEmbedding", x.double().transpose(1, 2))
    sequence = torch.cat([token[:, None], frames], dim=1)
    sequence = sequence + _sines(torch.arange(sequence.shape[1]), channels)
    layers = {name.removeprefix(ENCODER): each for name, each in w.items() if name.startswith(ENCODER)}
    depth = 1 + max(int(name.split(".")[1]) for name in layers)
    encoder = _encoder(channels, depth, heads, len(layers["layers.0.linear1.bias"])).double().eval()
    encoder.load_state_dict(layers)
    with torch.no_grad():
        output = encoder(sequence.transpose(0, 1)).transpose(0, 1)
    return linear("output_process.poseFinal", output[:, 1:]).transpose(1, 2)


def write_mdm(folder: Path) -> Path:
    """MDM of 16 channels for HumanML3D, with vectors of 16 numbers for four texts."""
    write_moments(folder)
    torch.save(mdm_weights(), folder / "model.pt")
    np.save(folder / "prompts.npy", torch.randn(4, 1, 16, generator=torch.Generator().manual_seed(0)).numpy())
    return folder


def _encoder(channels: int, depth: int, heads: int, hidden: int) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(channels, heads, hidden, activation="gelu")
    return nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)


def _sines(positions: Tensor, channels: int) -> Tensor:
    """Sines in even channels, cosines in odd ones, one channel at a time."""
    columns = []
    for channel in range(channels):
        angle = positions.double() / 10000 ** (2 * (channel // 2) / channels)
        columns.append(angle.sin() if channel % 2 == 0 else angle.cos())
    return torch.stack(columns, dim=1)
