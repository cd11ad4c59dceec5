"""Tiny random pipelines of the real classes of diffusers, in folders as they are published.

`write_pipeline("sd", folder)` writes one; the fixture `tiny_pipeline` of conftest does so once for each session. No
weight of a network is zero: layers that start at zero would hide most of it. Images have 16 x 16 pixels, latents
(4, 8, 8); DDPM, consistency models and IF have pixels (3, 8, 8). Texts have 16 (Stable Diffusion 1) or 32 channels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.tiny_text_encoders import PARTS, write_text_encoders

__all__ = ["CLASSES", "PIPELINES", "TEXT_LENGTHS", "refill", "write_pipeline"]

UNET = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 8}
CROSS = UNET | {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 2,
}
TRANSFORMER = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "num_layers": 3}
LATENT = TRANSFORMER | {"sample_size": 8, "patch_size": 2}
STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}

OF_TEXTS = ("attn2.", "add_k_proj", "add_v_proj", "add_embedding", "context_embedder", "text_embedder")

# rows of the embedding of a text, with the pooled vector; FLUX and PixArt read any number
TEXT_LENGTHS = {"sd": 77, "controlnet": 77, "sdxl": 78, "sd3": 334, "flux": 33, "pixart": 120, "if": 77}


def refill(model: nn.Module) -> Any:
    """Return `model` with random numbers in place of zeros and a larger influence of texts, in eval mode."""
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if not weight.any():
            nn.init.normal_(weight, std=0.2, generator=generator)
        if any(part in name for part in OF_TEXTS):
            weight.data.mul_(3.0)
    return model.eval()


def write_pipeline(name: str, folder: Path) -> Path:
    """Write the pipeline `name` of `PIPELINES` into `folder`, in safetensors."""
    import diffusers

    kind, components = CLASSES[name], PIPELINES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        if kind in PARTS:
            write_text_encoders(folder, kind)
            pipeline = getattr(diffusers, kind).from_pretrained(folder, local_files_only=True, **components())
        elif name == "controlnet":
            parts = diffusers.StableDiffusionPipeline.from_pretrained(write_pipeline("sd", folder)).components
            parts.pop("image_encoder")
            pipeline = getattr(diffusers, kind)(**parts, **components(), requires_safety_checker=False)
        else:
            pipeline = getattr(diffusers, kind)(**components())
        pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def autoencoder(**settings: Any) -> Any:
    """An AutoencoderKL that halves the sides of images."""
    from diffusers import AutoencoderKL

    model = AutoencoderKL(
        latent_channels=4,
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
        sample_size=16,
        **settings,
    )
    return refill(model)


def stable_diffusion() -> dict[str, Any]:
    """Stable Diffusion 1."""
    from diffusers import PNDMScheduler, UNet2DConditionModel

    scheduler = PNDMScheduler(**STABLE_DIFFUSION, skip_prk_steps=True, set_alpha_to_one=False)
    return {
        "unet": refill(UNet2DConditionModel(cross_attention_dim=16, **CROSS)),
        "vae": autoencoder(),
        "scheduler": scheduler,
    }


def controlnet() -> dict[str, Any]:
    """A ControlNet for Stable Diffusion 1, next to its parts."""
    from diffusers import ControlNetModel

    settings = {key: value for key, value in CROSS.items() if key not in ("up_block_types", "sample_size")}
    model = ControlNetModel(cross_attention_dim=16, conditioning_embedding_out_channels=(4, 8), **settings)
    return {"controlnet": refill(model)}


def sdxl() -> dict[str, Any]:
    """Stable Diffusion XL: a pooled vector of 16 numbers, and 6 sizes of 4 features each."""
    from diffusers import EulerDiscreteScheduler, UNet2DConditionModel

    unet = UNet2DConditionModel(
        cross_attention_dim=32,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=16 + 6 * 4,
        use_linear_projection=True,
        transformer_layers_per_block=2,
        **CROSS,
    )
    scheduler = EulerDiscreteScheduler(**STABLE_DIFFUSION, timestep_spacing="leading")
    return {"unet": refill(unet), "vae": autoencoder(scaling_factor=0.13025), "scheduler": scheduler}


def deep_floyd() -> dict[str, Any]:
    """DeepFloyd IF, first stage."""
    from diffusers import DDPMScheduler, UNet2DConditionModel

    unet = UNet2DConditionModel(
        in_channels=3,
        out_channels=6,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        cross_attention_dim=32,
        encoder_hid_dim=32,
        encoder_hid_dim_type="text_proj",
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        cross_attention_norm="group_norm",
        resnet_time_scale_shift="scale_shift",
        act_fn="gelu",
        attention_head_dim=4,
        **UNET,
    )
    scheduler = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        variance_type="learned_range",
        thresholding=True,
        dynamic_thresholding_ratio=0.95,
        sample_max_value=1.5,
    )
    return {"unet": refill(unet), "scheduler": scheduler}


def ddpm() -> dict[str, Any]:
    """DDPM."""
    from diffusers import DDPMScheduler

    return {"unet": pixel_unet(flip_sin_to_cos=False, freq_shift=1), "scheduler": DDPMScheduler()}


def consistency() -> dict[str, Any]:
    """A consistency model of 10 classes."""
    from diffusers import CMStochasticIterativeScheduler

    return {"unet": pixel_unet(num_class_embeds=10), "scheduler": CMStochasticIterativeScheduler()}


def pixel_unet(**settings: Any) -> Any:
    """A U-Net without texts."""
    from diffusers import UNet2DModel

    blocks = {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    return refill(UNet2DModel(attention_head_dim=4, **blocks, **UNET, **settings))


def dit() -> dict[str, Any]:
    """DiT of 1000 labels, whose blocks hold copies of one embedder, as published."""
    from diffusers import DDIMScheduler, DiTTransformer2DModel

    transformer = DiTTransformer2DModel(out_channels=8, num_embeds_ada_norm=1000, **LATENT)
    first, *others = [block.norm1.emb for block in transformer.transformer_blocks]
    for other in others:
        other.load_state_dict(first.state_dict())
    return {
        "transformer": refill(transformer),
        "vae": autoencoder(),
        "scheduler": DDIMScheduler(clip_sample=False),
        "id2label": {i: f"class {i}" for i in range(1000)},
    }


def pixart() -> dict[str, Any]:
    """PixArt-alpha at 512 pixels, which is not conditioned on sizes."""
    from diffusers import DPMSolverMultistepScheduler, PixArtTransformer2DModel

    transformer = PixArtTransformer2DModel(out_channels=8, cross_attention_dim=16, caption_channels=32, **LATENT)
    return {
        "transformer": refill(transformer),
        "vae": autoencoder(),
        "scheduler": DPMSolverMultistepScheduler(final_sigmas_type="zero"),
    }


def sd3() -> dict[str, Any]:
    """Stable Diffusion 3.5 medium: normalized queries and keys, a second attention in the first block."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

    transformer = SD3Transformer2DModel(
        out_channels=4,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
        **LATENT,
    )
    return {
        "transformer": refill(transformer),
        "vae": autoencoder(scaling_factor=1.5305, shift_factor=0.0609),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    }


def flux() -> dict[str, Any]:
    """FLUX.1 dev, with a guidance embedding."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        **TRANSFORMER | {"in_channels": 16, "num_layers": 2},
        num_single_layers=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        axes_dims_rope=(2, 2, 4),
        guidance_embeds=True,
    )
    return {
        "transformer": refill(transformer),
        "vae": autoencoder(scaling_factor=0.3611, shift_factor=0.1159),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    }


PIPELINES: dict[str, Callable[[], dict[str, Any]]] = {
    "sd": stable_diffusion,
    "controlnet": controlnet,
    "sdxl": sdxl,
    "if": deep_floyd,
    "ddpm": ddpm,
    "consistency": consistency,
    "dit": dit,
    "pixart": pixart,
    "sd3": sd3,
    "flux": flux,
}
CLASSES = {
    "sd": "StableDiffusionPipeline",
    "controlnet": "StableDiffusionControlNetPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "if": "IFPipeline",
    "ddpm": "DDPMPipeline",
    "consistency": "ConsistencyModelPipeline",
    "dit": "DiTPipeline",
    "pixart": "PixArtAlphaPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "flux": "FluxPipeline",
}
