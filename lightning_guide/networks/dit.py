"""Diffusion transformer (DiT): patches of x as tokens, blocks modulated by noise level and label.

Peebles and Xie 2022, "Scalable Diffusion Models with Transformers", https://arxiv.org/abs/2212.09748.
Differences from the paper: the network is used with EDM preconditioning, so that its noise input is ln(sigma) / 4, as
random Fourier features, and it predicts F alone, no variances; "no condition" is an embedding of zeros, not an
additional class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_guide.conditioning import pair_tokens
from lightning_guide.network import Network
from lightning_guide.networks.dit_block import Modulation, TransformerBlock, token_norm
from lightning_guide.networks.inputs import CrossAttention, check_tokens, one_hot
from lightning_guide.networks.magnitude_preserving import MPFourier

__all__ = ["DiffusionTransformer", "NoiseMLP", "PatchOutput"]


def _initialize(module: nn.Module) -> None:
    """Initialize as in the paper, for `nn.Module.apply`: Xavier, small embeddings, zero last layers of branches."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight.flatten(1))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, NoiseMLP):
        for layer in (module.first, module.second):
            nn.init.normal_(layer.weight, std=0.02)
    elif isinstance(module, Modulation | PatchOutput):
        nn.init.zeros_(module.linear.weight)
    elif isinstance(module, CrossAttention):
        nn.init.zeros_(module.output.weight)
    elif isinstance(module, DiffusionTransformer) and module.embedding_label is not None:
        nn.init.normal_(module.embedding_label.weight, std=0.02)


class NoiseMLP(nn.Module):
    """Noise embedding, c_noise (B,) -> (B, channels): 256 Fourier features, two linear layers, silu between."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fourier = MPFourier(256)
        self.first, self.second = nn.Linear(256, channels), nn.Linear(channels, channels)

    def forward(self, c_noise: Tensor) -> Tensor:
        """Return `(B, channels)` for `c_noise` (B,)."""
        return self.second(F.silu(self.first(self.fourier(c_noise).to(self.first.weight))))


class PatchOutput(nn.Module):
    """Output layer, tokens (B, N, channels) -> values of their patches (B, N, values); initially zero."""

    def __init__(self, channels: int, values: int) -> None:
        super().__init__()
        self.modulation = Modulation(channels, 2)
        self.norm = token_norm(channels)
        self.linear = nn.Linear(channels, values)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return `(B, N, values)` for `x` (B, N, channels) and `embedding` (B, channels)."""
        shift, scale = self.modulation(embedding)
        return self.linear(self.norm(x) * (1 + scale) + shift)


class DiffusionTransformer(Network):
    """Diffusion transformer F(x, c_noise, embedding) for images or latents (C, H, W), sequences (C, L) and points (d,).

    Images are cut into square patches, sequences into pieces, points (one channel) into groups of coordinates, all of
    `patch_size`, which must divide the sides; x may have other sides than `data_shape`. Positions are sines and cosines
    of row and column, computed for the tokens of x. Blocks and attention cores receive the token grid of images, and
    None for other data. Submodules: ``patches``, ``blocks.{i}`` with its ``attention``, the replaceable
    ``attention.core`` and its ``mlp``, ``reading.{i}`` (cross-attention to embeddings, before block i), ``output``,
    ``embedding_noise``, ``embedding_label``.

    Sizes of the paper, and parameters of this network for latents (4, 32, 32), 1000 labels, patch size 2:

    ====  ========  =====  =====  ===========
    name  channels  depth  heads  parameters
    ====  ========  =====  =====  ===========
    S          384     12      6   32,858,512
    B          768     12     12  130,302,736
    L         1024     24     16  457,823,248
    XL        1152     28     16  674,815,120
    ====  ========  =====  =====  ===========
    """

    resizable = True

    def __init__(
        self,
        data_shape: Sequence[int],
        *,
        num_classes: int = 0,
        token_channels: int = 0,
        patch_size: int = 2,
        channels: int = 384,
        depth: int = 12,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        qk_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        """Build the network; weights come from the global generator, Fourier features from a fixed one.

        Args:
            data_shape: (C, H, W), (C, L) or (d,).
            num_classes: labels; 0 for an unconditional network.
            token_channels: C of embeddings (B, L, C), which every block's tokens attend to (`CrossAttention`); 0: none.
            patch_size: side of a patch.
            channels: width of the tokens and of the embedding.
            depth: number of blocks.
            heads: attention heads of each block.
            mlp_ratio: hidden width of the MLPs over `channels`.
            qk_norm: whether queries and keys are normalized.
            dropout: probability, at the hidden layer of the MLPs.

        Raises:
            ValueError: if the patches do not fit the data or the heads the channels, or for both labels and embeddings.
        """
        super().__init__()
        if num_classes and token_channels:
            raise ValueError(
                f"DiffusionTransformer reads labels or embeddings; got {num_classes=} and {token_channels=}"
            )
        self.data_shape = tuple(data_shape)
        self.num_classes, self.token_channels = num_classes, token_channels
        self.patch_size, self.recompute = patch_size, False
        if not 1 <= len(self.data_shape) <= 3:
            raise ValueError(
                f"DiffusionTransformer: data_shape is {self.data_shape}; "
                "expected (channels, height, width), (channels, length) or (dimensions,)"
            )
        if channels % heads or channels % 4:
            raise ValueError(f"DiffusionTransformer: {channels} channels must be a multiple of {heads} heads and of 4")
        C, *sides = self._image_shape(self.data_shape)
        self.patch = (patch_size if len(self.data_shape) == 3 else 1, patch_size)
        self._token_grid(sides)

        from timm.layers import PatchEmbed  # takes half a second, which other runs save

        self.patches = PatchEmbed(None, self.patch, C, channels, flatten=False)  # type: ignore[arg-type]
        self.embedding_noise = NoiseMLP(channels)
        condition_channels = num_classes or token_channels
        self.embedding_label = nn.Linear(condition_channels, channels, bias=False) if condition_channels else None
        self.reading = nn.ModuleList(CrossAttention(channels, heads) for _ in range(depth if token_channels else 0))
        self.blocks = nn.ModuleList(
            TransformerBlock(channels, heads, mlp_ratio=mlp_ratio, qk_norm=qk_norm, dropout=dropout)
            for _ in range(depth)
        )
        self.output = PatchOutput(channels, C * math.prod(self.patch))
        self.apply(_initialize)

        middle, self.stages = f"blocks.{depth // 2}", ["blocks.*"]
        self.parts = {
            "attention": (f"{middle}.attention.core",),
            "block": (middle,),
            "dropout": ("blocks.*.mlp.drop1",),
            "noise_embedding": ("embedding_noise",),
        }
        if condition_channels:
            self.parts["label_embedding"] = ("embedding_label",)

    @staticmethod
    def _image_shape(shape: Sequence[int]) -> tuple[int, ...]:
        """Return (C, height, width) of one x: a sequence is an image of one row, points have one channel."""
        *front, width = shape
        return (*front, width) if len(front) == 2 else (*(front or [1]), 1, width)

    def _token_grid(self, sides: Sequence[int]) -> tuple[int, int]:
        """Return rows and columns of tokens; raise ValueError if the patches do not fit."""
        (height, width), (rows, columns) = sides, self.patch
        if height % rows or width % columns or not (height and width):
            raise ValueError(
                f"DiffusionTransformer: the size {height}x{width} cannot be cut into patches of {rows}x{columns}; "
                f"height and width must be multiples of these"
            )
        return height // rows, width // columns

    def embed(self, condition: Tensor | None, batch: int) -> Tensor | None:
        """Embed labels (B,) as `(B, channels)` or tokens (B, L, C) as `(B, L, channels)`; None without either.

        No label and no token are embedded as zeros.

        Raises:
            ValueError: if a label is out of range, or the condition has another shape or type.
        """
        if self.embedding_label is None:
            return None
        like = next(self.embedding_label.parameters())
        if self.token_channels:
            return self.embedding_label(check_tokens(condition, self.token_channels, batch=batch, like=like))
        return self.embedding_label(one_hot(condition, self.num_classes, batch=batch, like=like))

    def paired(self, embedding: Tensor, other: Tensor) -> Tensor:
        """Return the tokens of both `(B, 2 L, channels)`, as `Network.paired`."""
        return pair_tokens(embedding, other) if self.reading else super().paired(embedding, other)

    def forward(self, x: Tensor, c_noise: Tensor, embedding: Tensor | None) -> Tensor:
        """Return F `(B, *data_shape)` for the scaled input `x`, `c_noise` (B,) and the `embedding` of `embed`.

        Raises:
            ValueError: if the patches do not fit the sides of `x`.
        """
        B, shape = len(x), x.shape
        C, H, W = self._image_shape(shape[1:])
        h, w = self._token_grid((H, W))
        grid = (h, w) if x.ndim == 4 else None
        e = self.embedding_noise(c_noise)
        if embedding is not None and not self.reading:
            e = e + embedding

        x = x.reshape(B, C, H, W).to(self.patches.proj.weight.dtype)
        tokens = self.patches(x).flatten(2).mT  # (B, h w, channels)
        from timm.layers import build_sincos2d_pos_embed  # loaded by the constructor

        tokens = tokens + build_sincos2d_pos_embed([h, w], tokens.shape[-1], device=x.device).to(tokens.dtype)
        for i, block in enumerate(self.blocks):
            if self.reading:
                tokens = self.run(self.reading[i], tokens, embedding)
            tokens = self.run(block, tokens, e, grid)
        values = self.output(tokens, e).reshape(B, h, w, *self.patch, C)
        return values.permute(0, 5, 1, 3, 2, 4).reshape(shape)
