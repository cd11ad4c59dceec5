"""Networks: U-Nets (EDM2, DDPM++, NCSN++), transformers (DiT, MDM), MLPs for points, classifiers; their layers."""

from __future__ import annotations

from lightning_guide.networks.attention import AttentionCore, CosineAttention, SelfAttention
from lightning_guide.networks.classifiers import Classifier, NoisyClassifier, PatchClassifier, SmallClassifier
from lightning_guide.networks.ddpmpp import DDPMpp, NoiseWaves, Waves
from lightning_guide.networks.ddpmpp_block import DDPMBlock, ImageAttention
from lightning_guide.networks.dit import DiffusionTransformer, NoiseMLP, PatchOutput
from lightning_guide.networks.dit_block import Modulation, TokenAttention, TransformerBlock
from lightning_guide.networks.edm2_block import EDM2Block
from lightning_guide.networks.edm2_unet import EDM2UNet, NoiseEmbedding
from lightning_guide.networks.gft import BetaConditioned
from lightning_guide.networks.image_to_image import ImageAutoencoder, ImageToImageNetwork
from lightning_guide.networks.inputs import CrossAttention, MeanTokenEmbedding
from lightning_guide.networks.log_density_mlp import LogDensityMLP
from lightning_guide.networks.magnitude_preserving import (
    MPConv,
    MPFourier,
    MPLinear,
    mp_cat,
    mp_silu,
    mp_sum,
    normalize_weights_,
)
from lightning_guide.networks.mdm import MDM, FrameAttention, MotionBlock, TimestepMLP
from lightning_guide.networks.ncsnpp import FourierWaves, NCSNpp
from lightning_guide.networks.point_mlp import PointMLP
from lightning_guide.networks.rms_norm import normalize, pixel_norm

__all__ = [
    "AttentionCore",
    "BetaConditioned",
    "EDM2Block",
    "Classifier",
    "CosineAttention",
    "DDPMBlock",
    "DDPMpp",
    "DiffusionTransformer",
    "EDM2UNet",
    "FrameAttention",
    "FourierWaves",
    "LogDensityMLP",
    "MDM",
    "MPConv",
    "MPFourier",
    "MPLinear",
    "Modulation",
    "MotionBlock",
    "NCSNpp",
    "NoiseEmbedding",
    "NoiseMLP",
    "NoiseWaves",
    "NoisyClassifier",
    "PatchClassifier",
    "PatchOutput",
    "ImageAttention",
    "ImageAutoencoder",
    "ImageToImageNetwork",
    "PointMLP",
    "CrossAttention",
    "SelfAttention",
    "SmallClassifier",
    "TimestepMLP",
    "TokenAttention",
    "MeanTokenEmbedding",
    "TransformerBlock",
    "Waves",
    "mp_cat",
    "mp_silu",
    "mp_sum",
    "normalize",
    "normalize_weights_",
    "pixel_norm",
]
