"""How the transformers of the diffusers library are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_guide.conditioning import token_mask
from lightning_guide.pretrained.diffusers_family import Family, Parts, dropout_layers

__all__ = ["DiT", "Flux", "PixArt", "StableDiffusion3"]


class Transformer(Family):
    """Base of transformers: the block in the middle is that of the methods, unless a paper has another one."""

    attention = "attn1"
    time_embedding: str

    def _read(self, config: Mapping[str, Any]) -> None:
        self.stride = config["patch_size"]

    def parts(self, model: Any) -> Parts:
        """Return the parts; texts are perturbed before they enter the model."""
        middle = f"model.transformer_blocks.{len(model.transformer_blocks) // 2}"
        return dropout_layers(model, inside="ff.net.") | {
            "attention": (f"{middle}.{self.attention}.core",),
            "block": (middle,),
            "noise_embedding": (f"model.{self.time_embedding}",),
            "label_embedding": ("tokens",),
        }

    def stages(self, model: Any) -> list[str]:
        """Return the chain of blocks, or both."""
        single = ["model.single_transformer_blocks.*"] if hasattr(model, "single_transformer_blocks") else []
        return ["model.transformer_blocks.*", *single]


class _Embedded(nn.Module):
    """Embedder of a block whose "timestep" is the embedding (B, E) already."""

    def forward(self, timestep: Tensor, class_labels: Any, hidden_dtype: Any = None) -> Tensor:
        return timestep


class DiT(Transformer):
    """DiT and SiT. Every block holds a copy of the embedder of time and label: one is kept, and called once.

    The constant `downscale_freq_shift` of the embedding of the time is 0, as in the networks that were published;
    diffusers' own class has 1, for networks that were trained with it.
    """

    time_embedding = "embedder.timestep_embedder"

    def _read(self, config: Mapping[str, Any]) -> None:
        super()._read(config)
        self.require(norm_type="ada_norm_zero")
        self.num_classes = self.null_class = config["num_embeds_ada_norm"]

    def _defaults(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return {"downscale_freq_shift": 0.0}

    def check(self, model: Any) -> None:
        """Refuse embedders that differ."""
        embedders = [block.norm1.emb for block in model.transformer_blocks]
        for i, other in enumerate(embedders):
            pairs = zip(embedders[0].parameters(), other.parameters(), strict=True)
            if any(not (a.is_meta or torch.equal(a, b)) for a, b in pairs):
                raise ValueError(
                    f"the embedders of blocks 0 and {i} of this {self.name} differ; expected copies of one"
                )

    def adapt(self, model: Any) -> None:
        """Keep one embedder, as `model.embedder`, without random label dropout."""
        if not hasattr(model, "embedder"):
            model.embedder = model.transformer_blocks[0].norm1.emb
            for block in model.transformer_blocks:
                block.norm1.emb = _Embedded()
        model.embedder.class_embedder.dropout_prob = 0.0
        model.embedder.time_proj.downscale_freq_shift = float(self.constants["downscale_freq_shift"])

    def published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights with a copy of the embedder in each block."""
        shared = {name: each for name, each in state.items() if name.startswith("embedder.")}
        found = {name: each for name, each in state.items() if name not in shared}
        for i in range(self.config["num_layers"]):
            found |= {f"transformer_blocks.{i}.norm1.emb.{n.removeprefix('embedder.')}": e for n, e in shared.items()}
        return found

    def parts(self, model: Any) -> Parts:
        """Return the parts; labels have an embedding."""
        return super().parts(model) | {"label_embedding": ("model.embedder.class_embedder",)}

    def call(self, model: Any, x: Tensor, t: Tensor, embedding: Tensor | None, **more: Any) -> Tensor:
        """Return the output."""
        embedder = model.embedder
        e = embedder.timestep_embedder(embedder.time_proj(t).to(x.dtype)) + embedder.class_embedder(embedding)
        output: Tensor = model(x, timestep=e, **more).sample
        return output


class PixArt(Transformer):
    """PixArt-alpha and -Sigma. Tokens of zeros are masked; the larger alpha is conditioned on the size of the image."""

    masked = True
    time_embedding = "adaln_single.emb.timestep_embedder"

    def _read(self, config: Mapping[str, Any]) -> None:
        super()._read(config)
        self.token_channels = config["caption_channels"]
        additional = config["use_additional_conditions"]
        self.additional = config["sample_size"] == 128 if additional is None else additional

    def _defaults(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return {"resolution": None, "aspect_ratio": None} if self.additional else {}

    def _of_size(self, name: str, height: int, width: int) -> tuple[float, ...]:
        return (8.0 * height, 8.0 * width) if name == "resolution" else (height / width,)

    def parts(self, model: Any) -> Parts:
        """Return the parts, with block 1 for attention, as in the library's pipeline for PAG."""
        return super().parts(model) | {"attention": ("model.transformer_blocks.1.attn1.core",)}

    def arguments(self, x: Tensor, embedding: Tensor | None) -> dict[str, Any]:
        """Return tokens, their mask and the sizes."""
        assert embedding is not None
        sizes: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if self.additional:
            sizes = {name: self.constant(name, x) for name in sizes}
        return {
            "encoder_hidden_states": embedding.to(x.dtype),
            "encoder_attention_mask": token_mask(embedding).to(x.dtype),
            "added_cond_kwargs": sizes,
        }


class StableDiffusion3(Transformer):
    """Stable Diffusion 3 and 3.5."""

    attention = "attn"
    time_embedding = "time_text_embed.timestep_embedder"

    def _read(self, config: Mapping[str, Any]) -> None:
        super()._read(config)
        self.token_channels, self.vector = config["joint_attention_dim"], config["pooled_projection_dim"]

    def parts(self, model: Any) -> Parts:
        """Return the parts: blocks 7, 8, 9 are skipped as published for 3.5 medium; attention is that of block 1."""
        found = super().parts(model) | {"attention": ("model.transformer_blocks.1.attn.core",)}
        if len(model.transformer_blocks) >= 24:
            found["block"] = tuple(f"model.transformer_blocks.{i}" for i in (7, 8, 9))
        return found

    def arguments(self, x: Tensor, embedding: Tensor | None) -> dict[str, Any]:
        """Return tokens and the pooled vector."""
        assert embedding is not None
        pooled, tokens = self.split(embedding, x)
        return {"encoder_hidden_states": tokens, "pooled_projections": pooled}


class Flux(StableDiffusion3):
    """FLUX.1. Latents (C, H, W) are packed to tokens of 2 x 2; `guidance` is the input of the distilled model (dev)."""

    def _read(self, config: Mapping[str, Any]) -> None:
        super()._read(config)
        self.require(patch_size=1)
        self.stride = 2

    def _channels(self, inside: int, outside: int | None) -> tuple[int, int]:
        return inside // 4, (outside or inside) // 4

    def _default_size(self) -> Sequence[int]:
        return (128, 128)

    def _defaults(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return {"guidance": 3.5} if self.config["guidance_embeds"] else {}

    def parts(self, model: Any) -> Parts:
        """Return those of transformers: nothing is published for attention or skipped blocks."""
        return Transformer.parts(self, model)

    def call(self, model: Any, x: Tensor, t: Tensor, embedding: Tensor | None, **more: Any) -> Tensor:
        """Return the output, packed and unpacked around the model; its time is t / 1000."""
        B, C, H, W = x.shape
        h, w = H // 2, W // 2
        ids = torch.zeros(h, w, 3, device=x.device)
        ids[..., 1] = torch.arange(h, device=x.device)[:, None]
        ids[..., 2] = torch.arange(w, device=x.device)
        arguments = self.arguments(x, embedding)
        packed = x.reshape(B, C, h, 2, w, 2).permute(0, 2, 4, 1, 3, 5).reshape(B, h * w, 4 * C)
        output: Tensor = model(
            packed,
            timestep=t / 1000,
            img_ids=ids.reshape(h * w, 3),
            txt_ids=torch.zeros(arguments["encoder_hidden_states"].shape[1], 3, device=x.device),
            guidance=self.constant("guidance", x) if "guidance" in self.constants else None,
            **arguments,
            **more,
        ).sample
        return output.reshape(B, h, w, C, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(B, C, H, W)
