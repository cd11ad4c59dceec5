"""Networks: magnitude-preserving layers, the EDM2 U-Net, the diffusion transformer, the MLP with a log-density."""

from __future__ import annotations

from lightning_guide.networks.attention import CosineAttention, SelfAttention
from lightning_guide.networks.ddpmpp import DDPMpp
from lightning_guide.networks.log_density_mlp import LogDensityMLP
from lightning_guide.networks.magnitude_preserving import (
    MPConv,
    MPFourier,
    MPLinear,
    mp_cat,
    mp_silu,
    mp_sum,
    normalize,
    normalize_weights_,
    pixel_norm,
)
from lightning_guide.networks.picture_networks import PictureAutoencoder, PictureNetwork
from lightning_guide.networks.point_mlp import PointMLP
from lightning_guide.networks.transformer import DiffusionTransformer
from lightning_guide.networks.transformer_block import TransformerBlock
from lightning_guide.networks.unet import EDM2UNet, NoiseEmbedding
from lightning_guide.networks.unet_block import Block

__all__ = [
    "Block",
    "CosineAttention",
    "DDPMpp",
    "DiffusionTransformer",
    "EDM2UNet",
    "LogDensityMLP",
    "MPConv",
    "MPFourier",
    "MPLinear",
    "NoiseEmbedding",
    "PictureAutoencoder",
    "PictureNetwork",
    "PointMLP",
    "SelfAttention",
    "TransformerBlock",
    "mp_cat",
    "mp_silu",
    "mp_sum",
    "normalize",
    "normalize_weights_",
    "pixel_norm",
]
