"""Tiny random text encoders and tokenizers of the real classes, in folders as pipelines of diffusers write them."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch

__all__ = ["PARTS", "write_text_encoders"]

# The text encoders of each pipeline: class, and its pooled width if it has a projection.
PARTS: dict[str, tuple[str, ...]] = {
    "StableDiffusionPipeline": ("CLIPTextModel",),
    "StableDiffusionXLPipeline": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "StableDiffusion3Pipeline": ("CLIPTextModelWithProjection", "CLIPTextModelWithProjection", "T5EncoderModel"),
    "FluxPipeline": ("CLIPTextModel", "T5EncoderModel"),
    "PixArtAlphaPipeline": ("T5EncoderModel",),
    "PixArtSigmaPipeline": ("T5EncoderModel",),
    "IFPipeline": ("T5EncoderModel",),
}
LETTERS = list(string.ascii_lowercase + string.digits + string.punctuation)


def write_text_encoders(folder: Path, pipeline: str, *, width: int = 16, seed: int = 0) -> Path:
    """Write `model_index.json`, encoders of `width` channels and tokenizers, one token for each letter."""
    index: dict[str, Any] = {"_class_name": pipeline, "_diffusers_version": "0.36.0"}
    for number, kind in enumerate(PARTS[pipeline]):
        part = "" if number == 0 else f"_{number + 1}"
        encoder, tokenizer = _t5(2 * width) if kind.startswith("T5") else _clip(kind, width)
        torch.manual_seed(seed + number)
        for weights in encoder.parameters():
            torch.nn.init.normal_(weights, std=0.3)
        encoder.save_pretrained(folder / f"text_encoder{part}")
        tokenizer.save_pretrained(folder / f"tokenizer{part}")
        index |= {f"text_encoder{part}": ["transformers", kind]}
        index |= {f"tokenizer{part}": ["transformers", type(tokenizer).__name__]}
    network = (
        "unet" if pipeline in ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "IFPipeline") else "transformer"
    )
    index |= {network: ["diffusers", "UNet2DConditionModel"], "scheduler": ["diffusers", "DDIMScheduler"]}
    if pipeline == "IFPipeline":
        index |= dict.fromkeys(("safety_checker", "feature_extractor", "watermarker"), [None, None])
    else:
        index |= {"vae": ["diffusers", "AutoencoderKL"]}
    if pipeline == "StableDiffusionPipeline":
        index |= dict.fromkeys(("safety_checker", "feature_extractor"), [None, None])
    config = {"in_channels": 64} if pipeline == "FluxPipeline" else {"in_channels": 4, "sample_size": 8}
    (folder / network).mkdir(exist_ok=True)
    (folder / network / "config.json").write_text(
        json.dumps(config | {"_class_name": "UNet2DConditionModel", "joint_attention_dim": 2 * width})
    )
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def _clip(kind: str, width: int) -> tuple[Any, Any]:
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
    return getattr(transformers, kind)(config), tokenizer


def _t5(width: int) -> tuple[Any, Any]:
    import transformers

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), *((letter, -3.0) for letter in LETTERS)]
    tokenizer = transformers.T5TokenizerFast(vocab=pieces, extra_ids=0)
    config = transformers.T5Config(
        vocab_size=len(pieces),
        d_model=width,
        d_kv=8,
        d_ff=2 * width,
        num_layers=2,
        num_heads=2,
        is_encoder_decoder=False,
    )
    return transformers.T5EncoderModel(config), tokenizer
