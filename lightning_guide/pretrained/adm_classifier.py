"""The noisy classifier of ADM as its authors publish it, for classifier guidance.

Dhariwal and Nichol 2021, https://arxiv.org/abs/2105.05233, section 4: the encoder of the U-Net, with attention pooling
at its end. Heads have 64 channels, rows of attention are by head, and timesteps are those of the denoiser.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_guide.denoiser import expand
from lightning_guide.networks.classifiers import Classifier
from lightning_guide.noise_schedule import NoiseSchedule
from lightning_guide.pretrained.adm import adapt_unet, length, settings
from lightning_guide.pretrained.adm_layout import find_layout, rename_adm
from lightning_guide.pretrained.diffusers_network import find_class
from lightning_guide.pretrained.networks import GuideNetwork
from lightning_guide.pretrained.published import assign_weights, read_state_dict, without_weights

__all__ = ["ADMClassifier", "ADMClassifierFile", "read_adm_classifier"]


class AttentionPool(nn.Module):
    """Logits of the mean of all positions as a query of an attention to them (Radford et al. 2021, section 2.4)."""

    def __init__(self, channels: int, positions: int, outputs: int, *, head_channels: int = 64) -> None:
        super().__init__()
        self.heads = channels // head_channels
        self.positional_embedding = nn.Parameter(torch.randn(channels, positions + 1) / channels**0.5)
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return `(B, outputs)` for `x` (B, C, H, W)."""
        x = x.flatten(2)
        x = torch.cat([x.mean(2, keepdim=True), x], 2) + self.positional_embedding
        B, C, N = x.shape
        q, k, v = self.qkv_proj(x).reshape(B, 3, self.heads, C // self.heads, N).mT.unbind(1)
        y = F.scaled_dot_product_attention(q[:, :, :1], k, v).flatten(1)[..., None]
        logits: Tensor = self.c_proj(y)[..., 0]
        return logits


class ADMClassifier(Classifier):
    """ADM's classifier p(y | x, sigma) of noisy images: the encoder of its U-Net, and attention pooling."""

    def __init__(
        self, config: Mapping[str, Any], *, num_classes: int, time_channels: int, schedule: NoiseSchedule
    ) -> None:
        """Build the network with random weights.

        Args:
            config: of the UNet2DModel whose encoder it has.
            num_classes: K.
            time_channels: cosines and sines of the time.
            schedule: noise levels of the timesteps.
        """
        super().__init__()
        self.num_classes, self.schedule = num_classes, schedule
        self.model: Any = find_class("UNet2DModel")(**config)
        adapt_unet(self.model, None, time_channels)
        del self.model.up_blocks
        side, channels = config["sample_size"], config["block_out_channels"][-1]
        self.data_shape = (config["in_channels"], side, side)
        self.model.conv_norm_out = nn.GroupNorm(32, channels)
        positions = (side >> (len(config["block_out_channels"]) - 1)) ** 2
        self.model.conv_out = AttentionPool(channels, positions, num_classes)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return class logits (B, K) for `x` (B, C, H, W) at noise level `sigma` (B,) or ().

        Raises:
            ValueError: if the images have another shape than `data_shape`.
        """
        if tuple(x.shape[1:]) != self.data_shape:
            raise ValueError(f"images have shape {tuple(x.shape[1:])}; this classifier expects {self.data_shape}")
        model = self.model
        t = self.schedule.timestep(sigma).to(x.dtype).expand(len(x))
        e = model.time_embedding(model.time_proj(t))
        h = model.conv_in(x * (1 + expand(sigma, x) ** 2).rsqrt())
        for block in model.down_blocks:
            h, _ = block(h, e)
        logits: Tensor = model.conv_out(F.silu(model.conv_norm_out(model.mid_block(h, e))))
        return logits


def read_adm_classifier(place: str, *, constants: Mapping[str, Any] | None = None) -> ADMClassifier:
    """Return the noisy classifier of a checkpoint of ADM with attention pooling; `constants` as of `read_adm`.

    Raises:
        ValueError: as `read_adm`.
    """
    tensors = read_state_dict(place)
    layout = find_layout(tensors, place)
    given = settings(layout, place, {"by_head": True} | dict(constants or {}))
    classes = length(tensors, "out.2.c_proj.bias", place)
    config = layout.config(tensors, sample_size=given["size"], out_channels=3) | {"attention_head_dim": 64}
    options = {"num_classes": classes, "time_channels": tensors["time_embed.0.weight"].shape[1]}
    with without_weights():
        network = ADMClassifier(config, schedule=NoiseSchedule(given["schedule"]), **options)
    more = {r"out\.2\.(.*)": r"conv_out.\1"}
    renamed = rename_adm(
        tensors, layout, heads=lambda channels: channels // 64, by_head=given["by_head"], file=place, more=more
    )
    assign_weights(network.model, renamed, file=place)
    return network.eval()


class ADMClassifierFile(GuideNetwork):
    """Noisy classifier of a published file, for `ClassifierGuidance`; loaded at first use."""

    def __init__(self, file: str, *, constants: Mapping[str, Any] | None = None) -> None:
        """Choose the `file`, and what its shapes do not tell, as of `read_adm_classifier`."""
        super().__init__()
        self.file, self.constants = file, dict(constants or {})

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return int(self.network().num_classes)

    def _load(self) -> nn.Module:
        return read_adm_classifier(self.file, constants=self.constants)
