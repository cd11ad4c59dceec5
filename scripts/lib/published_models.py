"""Configs of published diffusion models, as far as they differ from the defaults of their classes in diffusers.

Written from what is known of the models; `tests/test_pretrained_published_sizes.py` compares the numbers of parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from lightning_guide.pretrained import DiffusersNetwork

__all__ = ["PUBLISHED", "PublishedModel", "autoencoder", "text_encoder"]


@dataclass(frozen=True)
class PublishedModel:
    """A published network.

    Attributes:
        architecture: class in diffusers.
        config: what differs from its defaults.
        parameters: their number in diffusers.
        tokens: rows of a text, with the pooled vector; 0 without texts.
        texts: its text encoders, names as of `text_encoder`.
        constants: as of `DiffusersNetwork`.
        latent: whether x are latents of an autoencoder.
    """

    architecture: str
    config: dict[str, Any]
    parameters: int
    tokens: int = 0
    texts: tuple[str, ...] = ()
    constants: dict[str, Any] = field(default_factory=dict)
    latent: bool = True

    def build(self) -> DiffusersNetwork:
        """Return the network on the meta device, without memory for its weights."""
        with torch.device("meta"):
            return DiffusersNetwork(self.architecture, self.config, empty_length=self.tokens, constants=self.constants)


def _sd(parameters: int, tokens: int, texts: tuple[str, ...], constants: Any = None, **config: Any) -> PublishedModel:
    return PublishedModel("UNet2DConditionModel", config, parameters, tokens, texts, constants or {})


def _deep_floyd(parameters: int, width: int) -> PublishedModel:
    config = {
        "sample_size": 64,
        "in_channels": 3,
        "out_channels": 6,
        "block_out_channels": [width, 2 * width, 3 * width, 4 * width],
        "layers_per_block": 3,
        "down_block_types": ["ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 3],
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": [*["SimpleCrossAttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"],
        "cross_attention_dim": 4 * width,
        "cross_attention_norm": "group_norm",
        "attention_head_dim": 64,
        "encoder_hid_dim": 4096,
        "encoder_hid_dim_type": "text_proj",
        "addition_embed_type": "text",
        "resnet_time_scale_shift": "scale_shift",
        "act_fn": "gelu",
    }
    return PublishedModel("UNet2DConditionModel", config, parameters, 77, ("T5-XXL",), latent=False)


def _ddpm(parameters: int, size: int, widths: list[int], attention: int) -> PublishedModel:
    last = len(widths) - 1
    config = {
        "sample_size": size,
        "block_out_channels": widths,
        "down_block_types": ["AttnDownBlock2D" if i == attention else "DownBlock2D" for i in range(last + 1)],
        "up_block_types": ["AttnUpBlock2D" if i == last - attention else "UpBlock2D" for i in range(last + 1)],
        "attention_head_dim": None,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "downsample_padding": 0,
        "norm_eps": 1e-6,
    }
    return PublishedModel("UNet2DModel", config, parameters, latent=False)


def _sd3(parameters: int, width: int, depth: int, **config: Any) -> PublishedModel:
    shape = {"num_layers": depth, "num_attention_heads": width // 64, "caption_projection_dim": width}
    texts = ("CLIP-L", "CLIP-G", "T5-XXL")
    return PublishedModel("SD3Transformer2DModel", shape | config, parameters, 1 + 77 + 256, texts)


def _pixart(parameters: int, size: int, tokens: int = 120, **config: Any) -> PublishedModel:
    settings = {"sample_size": size, "caption_channels": 4096} | config
    return PublishedModel("PixArtTransformer2DModel", settings, parameters, tokens, ("T5-XXL",))


SDXL = {
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [320, 640, 1280],
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "projection_class_embeddings_input_dim": 1280 + 6 * 256,
}
REFINER = {
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [384, 768, 1536, 1536],
    "transformer_layers_per_block": 4,
    "attention_head_dim": [6, 12, 24, 24],
    "cross_attention_dim": 1280,
    "projection_class_embeddings_input_dim": 1280 + 5 * 256,
}
SIZES = {
    "sample_size": 128,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "use_linear_projection": True,
}
SD2 = {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
DIT = {"out_channels": 8}
FLUX = {"joint_attention_dim": 4096, "pooled_projection_dim": 768}

PUBLISHED: dict[str, PublishedModel] = {
    "DDPM CIFAR-10": _ddpm(35_746_307, 32, [128, 256, 256, 256], 1),
    "DDPM CelebA-HQ 256": _ddpm(113_673_219, 256, [128, 128, 256, 256, 512, 512], 4),
    "Stable Diffusion 1.5": _sd(859_520_964, 77, ("CLIP-L",), sample_size=64, cross_attention_dim=768),
    "Stable Diffusion 2.1": _sd(865_910_724, 77, ("CLIP-H",), sample_size=96, **SD2),
    "SDXL": _sd(2_567_463_684, 78, ("CLIP-L", "CLIP-G"), **SIZES, **SDXL),
    "SDXL refiner": _sd(
        2_259_526_660, 78, ("CLIP-G",), {"time_ids": [1024.0, 1024.0, 0.0, 0.0, 6.0]}, **SIZES, **REFINER
    ),
    "IF-I-M": _deep_floyd(371_605_830, 192),
    "IF-I-L": _deep_floyd(935_365_830, 320),
    "IF-I-XL": _deep_floyd(4_304_695_110, 704),
    "DiT-XL/2 256": PublishedModel("DiTTransformer2DModel", DIT | {"sample_size": 32}, 674_834_720),
    "DiT-XL/2 512": PublishedModel("DiTTransformer2DModel", DIT | {"sample_size": 64}, 674_834_720),
    "PixArt-alpha 512": _pixart(610_856_096, 64),
    "PixArt-alpha 1024": _pixart(611_349_152, 128),
    "PixArt-Sigma 1024": _pixart(610_856_096, 128, 300, use_additional_conditions=False),
    "Stable Diffusion 3 medium": _sd3(2_028_328_000, 1536, 24, pos_embed_max_size=192),
    "Stable Diffusion 3.5 medium": _sd3(
        2_243_171_520, 1536, 24, pos_embed_max_size=384, qk_norm="rms_norm", dual_attention_layers=list(range(13))
    ),
    "Stable Diffusion 3.5 large": _sd3(8_056_627_520, 2432, 38, pos_embed_max_size=192, qk_norm="rms_norm"),
    "FLUX.1 schnell": PublishedModel("FluxTransformer2DModel", FLUX, 11_891_178_560, 257, ("CLIP-L", "T5-XXL")),
    "FLUX.1 dev": PublishedModel(
        "FluxTransformer2DModel", FLUX | {"guidance_embeds": True}, 11_901_408_320, 513, ("CLIP-L", "T5-XXL")
    ),
}

# hidden size, layers, heads, and for those with a projection its size
_CLIP: dict[str, tuple[int, int, int, int]] = {
    "CLIP-L": (768, 12, 12, 0),
    "CLIP-H": (1024, 23, 16, 0),
    "CLIP-G": (1280, 32, 20, 1280),
}


def text_encoder(name: str) -> Any:
    """Return a published text encoder on the meta device: CLIP-L, CLIP-H, CLIP-G or T5-XXL."""
    import transformers

    with torch.device("meta"):
        if name == "T5-XXL":
            config = transformers.T5Config(
                d_model=4096, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu"
            )
            return transformers.T5EncoderModel(config)
        width, depth, heads, projection = _CLIP[name]
        shape: dict[str, Any] = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": depth}
        settings = transformers.CLIPTextConfig(**shape, num_attention_heads=heads, projection_dim=projection or 512)
        kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
        return kind(settings)


def autoencoder(channels: int) -> Any:
    """Return the autoencoder of Stable Diffusion on the meta device; with 16 channels that of 3 and of FLUX."""
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        return AutoencoderKL(
            latent_channels=channels,
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            use_quant_conv=channels == 4,
            use_post_quant_conv=channels == 4,
        )
