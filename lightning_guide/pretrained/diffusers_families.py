"""How the denoising networks of the diffusers library are called: one class for each architecture.

| architecture | condition | time | constants |
|---|---|---|---|
| UNet2DModel | none, or labels without a null class | timestep | |
| UNet2DConditionModel | tokens | timestep | |
| DiTTransformer2DModel | labels, the last row of the table is the null class | timestep | downscale_freq_shift |

Networks that predict variances as well (twice the channels) give the first half.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

__all__ = ["FAMILIES", "Family"]

Constants = Mapping[str, Tensor]


class Family:
    """One architecture, read from its `config` (complete, with defaults).

    Attributes:
        channels: of x.
        size: (height, width) of x by the config; None if it has none.
        stride: height and width of x must be multiples of it.
        num_classes: labels.
        null_class: index of "no condition" among the labels; None if the network has none.
        token_channels: C of tokens.
        vector: length of the pooled vector in the first row of the tokens, 0 for none.
        masked: whether tokens of zeros are masked, so that their number is free.
        constants: names and defaults of numbers that belong to the model.
    """

    stride: int = 1
    num_classes: int = 0
    null_class: int | None = None
    token_channels: int = 0
    vector: int = 0
    masked: ClassVar[bool] = False

    def __init__(self, architecture: str, config: Mapping[str, Any]) -> None:
        self.architecture, self.config = architecture, config
        self.constants: dict[str, float | Sequence[float]] = {}
        self.channels: int = config["in_channels"]
        size = config.get("sample_size")
        self.size = None if size is None else tuple(size) if isinstance(size, list | tuple) else (size, size)
        out = config.get("out_channels") or self.channels
        if out not in (self.channels, 2 * self.channels):
            self.refuse(
                f"in_channels={self.channels} and out_channels={out}", "a network that denoises its whole input"
            )

    def refuse(self, found: str, expected: str) -> None:
        """Raise the error for a setting that is not supported."""
        raise ValueError(f"{self.architecture} with {found} is not supported; expected {expected}")

    def require(self, **values: Any) -> None:
        """Refuse settings with other values."""
        for key, value in values.items():
            if self.config.get(key, value) != value:
                self.refuse(f"{key}={self.config[key]!r}", repr(value))

    def check(self, model: Any) -> None:
        """Refuse weights that the network cannot use; by default none."""

    def adapt(self, model: Any, constants: Constants) -> None:
        """Change a model in place so that methods find its parts; by default not at all."""

    def parts(self, model: Any) -> dict[str, tuple[str, ...]]:
        """Return the name patterns of `Network.parts` in `model`."""
        raise NotImplementedError

    def call(self, model: Any, x: Tensor, t: Tensor, embedding: Tensor | None, constants: Constants) -> Tensor:
        """Return the output (B, C, H, W), or with twice the channels, for `x` in the dtype of the model."""
        raise NotImplementedError


class UNet2D(Family):
    """DDPM, consistency models, ADM. A U-Net without texts."""

    def __init__(self, architecture: str, config: Mapping[str, Any]) -> None:
        super().__init__(architecture, config)
        if config["class_embed_type"] is not None:
            self.refuse(f"class_embed_type={config['class_embed_type']!r}", "None")
        self.stride = 2 ** (len(config["down_block_types"]) - 1)
        self.num_classes = config["num_class_embeds"] or 0

    def parts(self, model: Any) -> dict[str, tuple[str, ...]]:
        """U-Nets: the middle of the network."""
        found = _middle(model) | _dropout(model, "resnets.") | {"noise_embedding": ("model.time_embedding",)}
        return found | ({"label_embedding": ("model.class_embedding",)} if self.num_classes else {})

    def call(self, model: Any, x: Tensor, t: Tensor, embedding: Tensor | None, constants: Constants) -> Tensor:
        """Return the output."""
        output: Tensor = model(x, t, class_labels=embedding).sample
        return output


class UNet2DCondition(Family):
    """Stable Diffusion 1 and 2. A U-Net with cross-attention to texts."""

    def __init__(self, architecture: str, config: Mapping[str, Any]) -> None:
        super().__init__(architecture, config)
        self.require(addition_embed_type=None, time_cond_proj_dim=None, class_embed_type=None, num_class_embeds=None)
        self.stride = 2 ** (len(config["down_block_types"]) - 1)
        width = config["encoder_hid_dim"] or config["cross_attention_dim"]
        if not isinstance(width, int):
            self.refuse(f"cross_attention_dim={width}", "one number")
        self.token_channels = width

    def parts(self, model: Any) -> dict[str, tuple[str, ...]]:
        """U-Nets: the middle of the network."""
        found = _middle(model) | _dropout(model, "resnets.")
        return found | {"noise_embedding": ("model.time_embedding",), "label_embedding": ("tokens",)}

    def call(self, model: Any, x: Tensor, t: Tensor, embedding: Tensor | None, constants: Constants) -> Tensor:
        """Return the output."""
        assert embedding is not None
        output: Tensor = model(x, t, embedding.to(x.dtype)).sample
        return output


class _Embedded(nn.Module):
    """Embedder of a block whose "timestep" is the embedding (B, E) already."""

    def forward(self, timestep: Tensor, class_labels: Any, hidden_dtype: Any = None) -> Tensor:
        return timestep


class DiT(Family):
    """DiT and SiT. Every block holds a copy of the embedder of time and label: one is kept, called once.

    The constant `downscale_freq_shift` of the embedding of the time is 0 as in the networks that were published;
    diffusers' own class has 1, for networks that were trained with it.
    """

    def __init__(self, architecture: str, config: Mapping[str, Any]) -> None:
        super().__init__(architecture, config)
        self.stride = config["patch_size"]
        self.num_classes = self.null_class = config["num_embeds_ada_norm"]
        self.constants = {"downscale_freq_shift": 0.0}

    def check(self, model: Any) -> None:
        """Refuse embedders that differ."""
        embedders = [
            block.norm1.emb for block in model.transformer_blocks if not isinstance(block.norm1.emb, _Embedded)
        ]
        for i, other in enumerate(embedders):
            if any(not torch.equal(*pair) for pair in zip(embedders[0].parameters(), other.parameters(), strict=True)):
                raise ValueError(
                    f"the embedders of blocks 0 and {i} of this {self.architecture} differ; expected copies of one"
                )

    def adapt(self, model: Any, constants: Constants) -> None:
        """Keep one embedder, as `model.embedder`, without random label dropout."""
        if not hasattr(model, "embedder"):
            model.embedder = model.transformer_blocks[0].norm1.emb
            for block in model.transformer_blocks:
                block.norm1.emb = _Embedded()
        model.embedder.class_embedder.dropout_prob = 0.0
        model.embedder.time_proj.downscale_freq_shift = float(constants["downscale_freq_shift"])

    def parts(self, model: Any) -> dict[str, tuple[str, ...]]:
        """Transformers: the block in the middle, as of `DiffusionTransformer`."""
        middle = f"model.transformer_blocks.{len(model.transformer_blocks) // 2}"
        return {
            "attention": (f"{middle}.attn1.core",),
            "block": (middle,),
            "dropout": ("model.transformer_blocks.*.ff.net.1",),
            "noise_embedding": ("model.embedder.timestep_embedder",),
            "label_embedding": ("model.embedder.class_embedder",),
        }

    def call(self, model: Any, x: Tensor, t: Tensor, embedding: Tensor | None, constants: Constants) -> Tensor:
        """Return the output."""
        embedder = model.embedder
        e = embedder.timestep_embedder(embedder.time_proj(t).to(x.dtype)) + embedder.class_embedder(embedding)
        output: Tensor = model(x, timestep=e).sample
        return output


def _middle(model: Any) -> dict[str, tuple[str, ...]]:
    """Return attention and block in the middle of a U-Net; a block is a transformer's if there is one."""
    found: dict[str, tuple[str, ...]] = {"block": ("model.mid_block.resnets.0",)}
    attentions = [each for each in getattr(model.mid_block, "attentions", []) or [] if each is not None]
    if not attentions:
        return found
    if hasattr(attentions[0], "transformer_blocks"):
        inside = "model.mid_block.attentions.*.transformer_blocks.*"
        return {"block": ("model.mid_block.attentions.0.transformer_blocks.0",), "attention": (f"{inside}.attn1.core",)}
    return found | {"attention": ("model.mid_block.attentions.*.core",)}


def _dropout(model: nn.Module, where: str) -> dict[str, tuple[str, ...]]:
    """Return the dropout modules whose names contain `where`, as one list of names."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Dropout) and where in name]
    return {"dropout": tuple(f"model.{name}" for name in names)} if names else {}


FAMILIES: dict[str, type[Family]] = {
    "UNet2DModel": UNet2D,
    "UNet2DConditionModel": UNet2DCondition,
    "DiTTransformer2DModel": DiT,
}
