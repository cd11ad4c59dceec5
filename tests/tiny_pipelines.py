"""Tiny random pipelines of the real classes of diffusers, in folders as they are published.

`write_pipeline("sd", folder)` writes one; the fixture `tiny_pipeline` of conftest does so once for each session. No
weight is zero: layers that start at zero would hide most of a network.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

__all__ = ["PIPELINES", "refill", "write_pipeline"]

LETTERS = list(string.ascii_lowercase + string.digits + string.punctuation)
UNET = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 8}


def refill(model: nn.Module) -> Any:
    """Return `model` with random numbers in place of zeros, in eval mode."""
    generator = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        if not weight.any():
            nn.init.normal_(weight, std=0.2, generator=generator)
    return model.eval()


def write_pipeline(name: str, folder: Path) -> Path:
    """Write the pipeline `name` of `PIPELINES` into `folder`, in safetensors."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        PIPELINES[name]().save_pretrained(folder, safe_serialization=True)
    return folder


def autoencoder(latent_channels: int = 4, **settings: Any) -> Any:
    """An AutoencoderKL that halves the sides of images."""
    from diffusers import AutoencoderKL

    options: dict[str, Any] = {
        "block_out_channels": (4, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 2,
        "sample_size": 16,
    }
    return refill(AutoencoderKL(latent_channels=latent_channels, **options, **settings))


def clip(kind: str = "CLIPTextModel", width: int = 16) -> tuple[Any, Any]:
    """A CLIP text encoder with a tokenizer of single letters."""
    import transformers

    words = [*LETTERS, *(letter + "</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = transformers.CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=77)
    config = transformers.CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder = getattr(transformers, kind)(config)
    for weights in encoder.parameters():
        nn.init.normal_(weights, std=0.3)
    return encoder.eval(), tokenizer


def stable_diffusion() -> Any:
    """Stable Diffusion 1: latents (4, 8, 8), texts (77, 16)."""
    import diffusers

    unet = diffusers.UNet2DConditionModel(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        **UNET,
    )
    scheduler = diffusers.PNDMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        steps_offset=1,
        skip_prk_steps=True,
        set_alpha_to_one=False,
    )
    encoder, tokenizer = clip()
    return diffusers.StableDiffusionPipeline(
        unet=refill(unet),
        vae=autoencoder(),
        text_encoder=encoder,
        tokenizer=tokenizer,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def ddpm() -> Any:
    """Pixels (3, 8, 8)."""
    import diffusers

    unet = diffusers.UNet2DModel(
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        flip_sin_to_cos=False,
        freq_shift=1,
        attention_head_dim=4,
        **UNET,
    )
    return diffusers.DDPMPipeline(unet=refill(unet), scheduler=diffusers.DDPMScheduler())


def dit() -> Any:
    """DiT: latents (4, 8, 8), 10 labels."""
    import diffusers

    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
    )
    first, *others = [block.norm1.emb for block in transformer.transformer_blocks]
    for other in others:  # copies of one embedder, as published
        other.load_state_dict(first.state_dict())
    names = {i: f"class {i}" for i in range(10)}
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    return diffusers.DiTPipeline(
        transformer=refill(transformer), vae=autoencoder(), scheduler=scheduler, id2label=names
    )


PIPELINES: dict[str, Callable[[], Any]] = {"sd": stable_diffusion, "ddpm": ddpm, "dit": dit}
