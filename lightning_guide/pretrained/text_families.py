"""How published pipelines read prompts: shapes and parts of their conditions.

| pipeline | tokens (L, C) | its part |
|---|---|---|
| StableDiffusionPipeline | 77, 768 (1.x) or 1024 (2.x) | all rows of CLIP |
| StableDiffusionXLPipeline | 1 + 77, 2048 | pooled vector, then the penultimate layers of two CLIPs side by side |
| StableDiffusion3Pipeline | 1 + 77 + 256, 4096 | pooled vectors of two CLIPs, then their layers, then T5 or zeros |
| FluxPipeline | 1 + 512, 4096 | pooled vector of CLIP, then T5 |
| PixArtAlphaPipeline, PixArtSigmaPipeline | 120 or 300, 4096 | T5; padding is zeros |
| IFPipeline | 77, 4096 | all rows of T5 |

A pooled vector is the first row, padded with zeros to C. PixArt and IF clean prompts if beautifulsoup4 and ftfy are
installed, as these pipelines do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_guide.conditioning import mask_tokens

__all__ = ["FAMILIES", "TextFamily"]


class TextFamily(NamedTuple):
    """How a pipeline reads prompts: its call, the tokenizer that reads the most, and how many tokens that reads."""

    encode: Callable[[Any, list[str]], Tensor]
    tokenizer: str
    length: int
    network: str = "unet"
    zeros: bool = False  # whether "no condition" is zeros unless the folder says otherwise


def _sd(pipe: Any, texts: list[str]) -> Tensor:
    tokens: Tensor = pipe.encode_prompt(texts, pipe.text_encoder.device, 1, False)[0]
    return tokens


def _sdxl(pipe: Any, texts: list[str]) -> Tensor:
    options = {"device": pipe.text_encoder_2.device, "do_classifier_free_guidance": False}
    tokens, _, pooled, _ = pipe.encode_prompt(texts, **options)
    return _with_vector(tokens, pooled)


def _sd3(pipe: Any, texts: list[str]) -> Tensor:
    options = {"device": pipe.text_encoder.device, "do_classifier_free_guidance": False}
    tokens, _, pooled, _ = pipe.encode_prompt(texts, None, None, **options)
    return _with_vector(tokens, pooled)


def _flux(pipe: Any, texts: list[str]) -> Tensor:
    tokens, pooled, _ = pipe.encode_prompt(texts, device=pipe.text_encoder.device)
    return _with_vector(tokens, pooled)


def _pixart(pipe: Any, texts: list[str]) -> Tensor:
    tokens, mask, *_ = pipe.encode_prompt(texts, False, device=pipe.text_encoder.device, clean_caption=True)
    return mask_tokens(tokens, mask)


def _if(pipe: Any, texts: list[str]) -> Tensor:
    tokens: Tensor = pipe.encode_prompt(texts, False, device=pipe.text_encoder.device, clean_caption=True)[0]
    return tokens


FAMILIES = {
    **dict.fromkeys(("StableDiffusionPipeline", "StableDiffusionControlNetPipeline"), TextFamily(_sd, "tokenizer", 77)),
    **dict.fromkeys(
        ("StableDiffusionXLPipeline", "StableDiffusionXLControlNetPipeline"),
        TextFamily(_sdxl, "tokenizer_2", 77, zeros=True),
    ),
    "StableDiffusion3Pipeline": TextFamily(_sd3, "tokenizer_3", 256, "transformer"),
    "FluxPipeline": TextFamily(_flux, "tokenizer_2", 512, "transformer"),
    "PixArtAlphaPipeline": TextFamily(_pixart, "tokenizer", 120, "transformer"),
    "PixArtSigmaPipeline": TextFamily(_pixart, "tokenizer", 300, "transformer"),
    "IFPipeline": TextFamily(_if, "tokenizer", 77),
}


def _with_vector(tokens: Tensor, pooled: Tensor) -> Tensor:
    """Put `pooled` (P, V), padded with zeros, before `tokens` (P, L, C)."""
    return torch.cat([F.pad(pooled, (0, tokens.shape[2] - pooled.shape[1]))[:, None].to(tokens), tokens], dim=1)
