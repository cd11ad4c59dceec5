"""The denoising networks of the diffusers library that are supported.

| architecture | models | condition | constants |
|---|---|---|---|
| UNet2DModel | DDPM, consistency models, ADM | none, or labels without a null class | |
| UNet2DConditionModel | Stable Diffusion 1, 2 | CLIP tokens | |
| the same, "text_time" | SDXL and its refiner | pooled vector and CLIP tokens | time_ids |
| the same, "text" | DeepFloyd IF, first stage | T5 tokens | |
| DiTTransformer2DModel | DiT, SiT | labels with a null class | downscale_freq_shift |
| PixArtTransformer2DModel | PixArt-alpha, -Sigma | T5 tokens, masked | resolution, aspect_ratio |
| SD3Transformer2DModel | Stable Diffusion 3, 3.5 | pooled vector, CLIP and T5 tokens | |
| FluxTransformer2DModel | FLUX.1 dev, schnell | pooled vector of CLIP, T5 tokens | guidance |

Networks that predict variances as well (IF, DiT, PixArt, ADM) have them in the second half of the output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_guide.pretrained.diffusers_family import Family, Parts, dropout_layers
from lightning_guide.pretrained.diffusers_transformers import DiT, Flux, PixArt, StableDiffusion3

__all__ = ["FAMILIES", "find_architecture"]


class UNet2D(Family):
    """U-Net without texts."""

    def _read(self, config: Mapping[str, Any]) -> None:
        self.stride = 2 ** (len(config["down_block_types"]) - 1)
        self.require(class_embed_type=None)
        self.num_classes = config["num_class_embeds"] or 0

    def parts(self, model: Any) -> Parts:
        """Return the parts, those in the middle for attention and blocks; these are transformer blocks, or resnets."""
        found = dropout_layers(model, inside="resnets.")
        found |= {"block": ("model.mid_block.resnets.0",), "noise_embedding": ("model.time_embedding",)}
        if self.num_classes or self.token_channels:
            found["label_embedding"] = ("tokens",) if self.token_channels else ("model.class_embedding",)
        attentions = [each for each in getattr(model.mid_block, "attentions", None) or [] if each is not None]
        if attentions and hasattr(attentions[0], "transformer_blocks"):
            found["block"] = ("model.mid_block.attentions.0.transformer_blocks.0",)
            found["attention"] = ("model.mid_block.attentions.*.attn1.core",)
        elif attentions:
            found["attention"] = ("model.mid_block.attentions.*.core",)
        return found

    def stages(self, model: Any) -> list[str]:
        """Return the blocks; the last ones read the results of the first ones."""
        down, up = (
            [f"model.{side}.{i}" for i in range(len(getattr(model, side)))] for side in ("down_blocks", "up_blocks")
        )
        return [*down, *(["model.mid_block"] if model.mid_block is not None else []), *up]

    def arguments(self, x: Tensor, embedding: Tensor | None) -> dict[str, Any]:
        """Return the labels."""
        return {"class_labels": embedding}


class UNet2DCondition(UNet2D):
    """U-Net with cross-attention to texts, and for SDXL a pooled vector and sizes."""

    def _read(self, config: Mapping[str, Any]) -> None:
        super()._read(config)
        self.require(addition_embed_type=(None, "text", "text_time"), encoder_hid_dim_type=(None, "text_proj"))
        self.require(time_cond_proj_dim=None, num_class_embeds=None)
        self.pools_texts = config["addition_embed_type"] == "text"
        self.token_channels = config["encoder_hid_dim"] or config["cross_attention_dim"]
        if not isinstance(self.token_channels, int):
            self.refuse(f"cross_attention_dim={self.token_channels}", "one number")

    def _defaults(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return SDXL's sizes: of the original image, the corner of the crop, and the target size."""
        if self.config["addition_embed_type"] != "text_time":
            return {}
        count = len(given.get("time_ids") or self._of_size("time_ids", 1, 1))
        self.vector = self.config["projection_class_embeddings_input_dim"]
        self.vector -= count * self.config["addition_time_embed_dim"]
        if self.vector <= 0:
            self.refuse(f"{count} time_ids", "fewer, by its projection_class_embeddings_input_dim")
        self.sizes = count if self.token_channels - self.vector >= count else 0
        return {"time_ids": None}

    def _of_size(self, name: str, height: int, width: int) -> tuple[float, ...]:
        """Return the sizes of an image that is not cropped."""
        return 8.0 * height, 8.0 * width, 0.0, 0.0, 8.0 * height, 8.0 * width

    def arguments(self, x: Tensor, embedding: Tensor | None) -> dict[str, Any]:
        """Return the tokens, with the pooled vector and the sizes."""
        assert embedding is not None
        pooled, tokens = self.split(embedding, x)
        if not self.vector:
            return {"encoder_hidden_states": tokens}
        ids = self.constant("time_ids", x)
        if self.sizes:
            given = embedding[:, 0, -self.sizes :].to(ids)
            ids = torch.where(given.any(dim=1, keepdim=True), given, ids)
        added = {"text_embeds": pooled, "time_ids": ids}
        return {"encoder_hidden_states": tokens, "added_cond_kwargs": added}


FAMILIES: dict[str, type[Family]] = {
    "UNet2DModel": UNet2D,
    "UNet2DConditionModel": UNet2DCondition,
    "DiTTransformer2DModel": DiT,
    "PixArtTransformer2DModel": PixArt,
    "SD3Transformer2DModel": StableDiffusion3,
    "FluxTransformer2DModel": Flux,
}

_OLD_TRANSFORMERS = {"ada_norm_zero": "DiTTransformer2DModel", "ada_norm_single": "PixArtTransformer2DModel"}


def find_architecture(config: Mapping[str, Any]) -> str:
    """Return the name of the architecture of a `config.json`; DiT and PixArt were once one class, Transformer2DModel.

    Raises:
        ValueError: naming the architecture, if it is not supported.
    """
    name = str(config.get("_class_name"))
    if name == "Transformer2DModel":
        name = _OLD_TRANSFORMERS.get(str(config.get("norm_type")), name)
    if name not in FAMILIES:
        raise ValueError(f"the architecture {name} is not supported; supported: {', '.join(FAMILIES)}")
    return name
