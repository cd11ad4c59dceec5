"""EDM2 U-Net, "config G": a magnitude-preserving network without biases and without group normalization.

Karras et al. 2024, https://arxiv.org/abs/2312.02696, section 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from lightning_guide.network import Network
from lightning_guide.networks.edm2_block import EDM2Block
from lightning_guide.networks.inputs import MeanTokenEmbedding, check_size, check_tokens, one_hot
from lightning_guide.networks.magnitude_preserving import (
    MPConv,
    MPFourier,
    MPLinear,
    mp_cat,
    mp_silu,
    mp_sum,
    normalize_weights_,
    with_fused_weights,
)

__all__ = ["EDM2UNet", "NoiseEmbedding"]


class NoiseEmbedding(nn.Module):
    """Noise embedding, c_noise (B,) -> (B, embedding_channels): Fourier features and one linear layer."""

    def __init__(self, fourier_channels: int, embedding_channels: int) -> None:
        super().__init__()
        self.fourier = MPFourier(fourier_channels)
        self.linear = MPLinear(fourier_channels, embedding_channels)

    def forward(self, c_noise: Tensor) -> Tensor:
        """Return `(B, embedding_channels)` for `c_noise` (B,)."""
        return self.linear(self.fourier(c_noise))


class EDM2UNet(Network):
    """EDM2 U-Net F(x, c_noise, embedding) for images or latents (C, H, W), H and W divisible by 2^(levels - 1).

    Level l has model_channels * channel_mult[l] channels and 1 / 2^l of the size of the data. Submodules:
    ``input``, ``encoder.{h}x{w}_down``, ``encoder.{h}x{w}_block{i}``, ``decoder.{h}x{w}_in{0,1}``,
    ``decoder.{h}x{w}_up``, ``decoder.{h}x{w}_block{i}``, ``output``, ``embedding_noise``, ``embedding_label``; the
    attention of a block is its ``attention``, with the replaceable ``attention.core``. The names contain the sizes of
    `data_shape`; x may have another height and width.
    """

    resizable = True
    parts = {
        "attention": ("decoder.*_in0.attention.core",),
        "block": ("decoder.*_in0",),
        "dropout": ("*.dropout",),
        "noise_embedding": ("embedding_noise",),
        "label_embedding": ("embedding_label",),
    }

    def __init__(
        self,
        data_shape: Sequence[int],
        *,
        num_classes: int = 0,
        token_channels: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        num_blocks: int = 3,
        attention_resolutions: Sequence[int] = (16, 8),
        dropout: float = 0.0,
        label_balance: float = 0.5,
        concat_balance: float = 0.5,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        clip_act: float = 256.0,
    ) -> None:
        """Build the network; weights come from the global generator, Fourier features from a fixed one.

        Args:
            data_shape: (C, H, W) of one x.
            num_classes: number of labels, 0 for an unconditional network, which ignores labels.
            token_channels: C of embeddings (B, L, C), of which the mean is used (`MeanTokenEmbedding`); 0: none.
            model_channels: channels of the first level; 64 (XXS) to 448 (XXL) in the published presets.
            channel_mult: multiplier of each level.
            num_blocks: encoder blocks of a level; the decoder has one more.
            attention_resolutions: levels with attention, given by the smaller side of their size. The lowest
                level always has one more attention block, `in0`.
            dropout: probability of dropping an activation inside a residual branch during training.
            label_balance: weight of the label in the embedding, 0 to 1.
            concat_balance: weight of the skip connections in the decoder, 0 to 1.
            res_balance: weight of the residual branch, 0 to 1.
            attn_balance: weight of attention, 0 to 1.
            clip_act: activations are clamped to +- this at the end of each block.

        Raises:
            ValueError: if the sizes cannot be halved that often, attention is requested at a size that no level has, or
                both labels and embeddings are requested.
        """
        super().__init__()
        if len(data_shape) != 3:
            raise ValueError(f"EDM2UNet: data_shape is {tuple(data_shape)}; expected (channels, height, width)")
        if num_classes and token_channels:
            raise ValueError(f"EDM2UNet reads labels or embeddings; got {num_classes=} and {token_channels=}")
        self.data_shape = tuple(data_shape)
        self.num_classes, self.token_channels = num_classes, token_channels
        self.label_balance = label_balance
        self.concat_balance = concat_balance
        self.stride = 2 ** (len(channel_mult) - 1)
        C, H, W = self.data_shape
        check_size("EDM2UNet", H, W, stride=self.stride)
        self.recompute = False

        channels = [model_channels * multiplier for multiplier in channel_mult]
        sizes = [(H >> level, W >> level) for level in range(len(channels))]
        unknown = set(attention_resolutions) - {min(size) for size in sizes}
        if unknown:
            raise ValueError(
                f"EDM2UNet: attention_resolutions names {sorted(unknown)}, which no level has; "
                f"the smaller sides of the levels are {[min(size) for size in sizes]}"
            )
        names = [f"{h}x{w}" for h, w in sizes]
        attention = [min(size) in attention_resolutions for size in sizes]
        block = partial(
            EDM2Block,
            embedding_channels=max(channels),
            dropout=dropout,
            res_balance=res_balance,
            attn_balance=attn_balance,
            clip_act=clip_act,
        )

        self.embedding_noise = NoiseEmbedding(channels[0], max(channels))
        self.embedding_label: nn.Module | None = None
        if num_classes:
            self.embedding_label = MPLinear(num_classes, max(channels))
        elif token_channels:
            self.embedding_label = MeanTokenEmbedding(token_channels, max(channels))

        self.input = MPConv(C + 1, channels[0], kernel=3)
        current, skips = channels[0], [channels[0]]
        encoder: dict[str, nn.Module] = {}
        for level, name in enumerate(names):
            if level > 0:
                encoder[f"{name}_down"] = block(current, current, variant="encoder", resample="down")
                skips.append(current)
            for i in range(num_blocks):
                inputs, current = current, channels[level]
                encoder[f"{name}_block{i}"] = block(inputs, current, variant="encoder", attention=attention[level])
                skips.append(current)
        self.encoder = nn.ModuleDict(encoder)

        decoder: dict[str, nn.Module] = {}
        for level, name in reversed(list(enumerate(names))):
            if level == len(names) - 1:
                decoder[f"{name}_in0"] = block(current, current, variant="decoder", attention=True)
                decoder[f"{name}_in1"] = block(current, current, variant="decoder")
            else:
                decoder[f"{name}_up"] = block(current, current, variant="decoder", resample="up")
            for i in range(num_blocks + 1):
                skip = skips.pop()
                inputs, current = current + skip, channels[level]
                decoder[f"{name}_block{i}"] = block(
                    inputs, current, variant="decoder", skip_channels=skip, attention=attention[level]
                )
        self.decoder = nn.ModuleDict(decoder)
        self.stages = [*(f"encoder.{name}" for name in encoder), *(f"decoder.{name}" for name in decoder)]
        self.output = MPConv(current, C, kernel=3, learned_gain=True)
        self.constrain()

    def embed(self, condition: Tensor | None, batch: int) -> Tensor | None:
        """Embed labels (B,) or tokens (B, L, C) as `(B, E)`, "no condition" as zeros; None without labels and tokens.

        Raises:
            ValueError: if a label is out of range, or the condition has another shape or type.
        """
        if self.embedding_label is None:
            return None
        like = next(self.embedding_label.parameters())
        if self.token_channels:
            return self.embedding_label(check_tokens(condition, self.token_channels, batch=batch, like=like))
        rows = one_hot(condition, self.num_classes, batch=batch, like=like)
        return self.embedding_label(rows * math.sqrt(self.num_classes))

    def forward(self, x: Tensor, c_noise: Tensor, embedding: Tensor | None) -> Tensor:
        """Return F `(B, C, H, W)` for the scaled input `x` (B, C, H, W), `c_noise` (B,) and the `embedding` (B, E).

        Raises:
            ValueError: if height or width of `x` is not a multiple of the total stride.
        """
        check_size("EDM2UNet", *x.shape[2:], stride=self.stride)
        e = self.embedding_noise(c_noise)
        if embedding is not None:
            e = mp_sum(e, embedding, self.label_balance)
        e = mp_silu(e)

        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        x = self.input(x.contiguous(memory_format=torch.channels_last))  # the layout of all activations
        skips = [x]
        for block in self.encoder.values():
            x = self.run(block, x, e)
            skips.append(x)
        for block in self.decoder.values():
            if block.skip_channels:
                x = mp_cat(x, skips.pop(), self.concat_balance)
            x = self.run(block, x, e)
        return self.output(x)

    def constrain(self) -> None:
        """Apply forced weight normalization to all layers (`normalize_weights_`)."""
        normalize_weights_(self)

    def fused(self) -> EDM2UNet:
        """Return an inference-only copy with precomputed normalized weights (`with_fused_weights`)."""
        return with_fused_weights(self)
