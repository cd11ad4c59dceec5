r"""The "DDPM++" network of EDM: a U-Net with group normalisation, for pictures of CIFAR-10's size.

Ho et al. 2020, https://arxiv.org/abs/2006.11239; Song et al. 2021, https://arxiv.org/abs/2011.13456, appendix H
(residuals divided by sqrt 2, resampling inside blocks); Karras et al. 2022, https://arxiv.org/abs/2206.00364, table 7
(128 channels, multipliers 2, 2, 2, four blocks, attention at 16x16, condition of the augmentation). What these leave
open was chosen so that the number of parameters is the published one, about 55.7 million.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_guide.denoiser import Network
from lightning_guide.networks.attention import CosineAttention
from lightning_guide.networks.labels import one_hot

__all__ = ["DDPMBlock", "DDPMpp", "NoiseWaves", "PictureAttention"]

NEARLY_NOTHING = 1e-5  # times the usual size, at first: the weights at the exit of every branch


def _norm(channels: int) -> nn.GroupNorm:
    """Group normalisation in 32 groups, or in groups of four channels where that would be fewer."""
    return nn.GroupNorm(max(min(32, channels // 4), 1), channels, eps=1e-6)


def _initialised(layer: nn.Conv2d | nn.Linear, scale: float = 1.0) -> nn.Conv2d | nn.Linear:
    """Xavier's uniform weights times `scale`, and no bias at first."""
    nn.init.xavier_uniform_(layer.weight)
    with torch.no_grad():
        layer.weight.mul_(scale)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class PictureAttention(nn.Module):
    """(x + output(core(q, k, v))) / sqrt(2) with one head for all channels; the core is replaceable."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.qkv = _initialised(nn.Conv2d(channels, 3 * channels, 1), math.sqrt(0.2))
        self.core: nn.Module = CosineAttention()
        self.output = _initialised(nn.Conv2d(channels, channels, 1), NEARLY_NOTHING)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` of `x` (B, C, H, W)."""
        B, C, H, W = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(B, 3, 1, C, H * W).transpose(-1, -2).unbind(1)  # each (B, 1, N, C)
        y = self.core(q, k, v, (H, W)).squeeze(1).mT.reshape(B, C, H, W)
        return (x + self.output(y)) / math.sqrt(2)


class DDPMBlock(nn.Module):
    """(skip(x) + conv(silu(norm(conv(silu(norm(x))) + linear(embedding))))) / sqrt(2), then perhaps attention.

    The first convolution and the skip resample. The skip is a 1x1 convolution where channels or size change.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        embedding_channels: int,
        resample: Literal["keep", "down", "up"] = "keep",
        skip_channels: int = 0,
        attention: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.resample, self.skip_channels = resample, skip_channels
        self.norm_in = _norm(in_channels)
        self.residual_in = _initialised(nn.Conv2d(in_channels, out_channels, 3, padding=1))
        self.modulation = _initialised(nn.Linear(embedding_channels, out_channels))
        self.norm_out = _norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.residual_out = _initialised(nn.Conv2d(out_channels, out_channels, 3, padding=1), NEARLY_NOTHING)
        same = in_channels == out_channels and resample == "keep"
        self.projection = None if same else _initialised(nn.Conv2d(in_channels, out_channels, 1))
        self.attention = PictureAttention(out_channels) if attention else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """`(B, out, H', W')` of `x` (B, in, H, W) and `embedding` (B, E)."""
        y = self.residual_in(self._resampled(F.silu(self.norm_in(x))))
        y = F.silu(self.norm_out(y + self.modulation(embedding)[:, :, None, None]))
        y = self.residual_out(self.dropout(y))
        x = self._resampled(x)
        x = ((x if self.projection is None else self.projection(x)) + y) / math.sqrt(2)
        return x if self.attention is None else self.attention(x)

    def _resampled(self, x: Tensor) -> Tensor:
        """Half or twice the size, by the mean of 2x2 or by repetition."""
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2, mode="nearest") if self.resample == "up" else x


class NoiseWaves(nn.Module):
    """silu(linear(silu(linear(waves + told)))), waves of c_noise (B,), told (B, channels) all the network is told."""

    def __init__(self, channels: int, embedding_channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.first = _initialised(nn.Linear(channels, embedding_channels))
        self.second = _initialised(nn.Linear(embedding_channels, embedding_channels))

    def forward(self, c_noise: Tensor, told: Tensor | None) -> Tensor:
        """`(B, embedding_channels)`; the waves are cos and sin of c_noise times 1 ... 1/10,000."""
        count = self.channels // 2
        powers = torch.arange(count, device=c_noise.device, dtype=torch.float32) / max(count - 1, 1)
        angles = torch.outer(c_noise.to(torch.float32), 1e-4**powers)
        waves = torch.cat([angles.cos(), angles.sin()], dim=1).to(self.first.weight)
        return F.silu(self.second(F.silu(self.first(waves if told is None else waves + told))))


class DDPMpp(Network):
    """F(x, c_noise, embedding) for pictures (C, H, W), H and W divisible by 2^(levels - 1).

    Level l has model_channels * channel_mult[l] channels. Attention stands behind every encoder block of a level that
    has it, behind its last decoder block, and behind the first block at the bottom. Names as in `EDM2UNet`.
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
        augmentation_channels: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (2, 2, 2),
        num_blocks: int = 4,
        attention_resolutions: Sequence[int] = (16,),
        dropout: float = 0.13,
    ) -> None:
        """Builds the network; weights come from the global generator.

        Args:
            data_shape: (C, H, W) of one x.
            num_classes: number of labels, 0 for an unconditional network.
            augmentation_channels: A of the vectors (B, A) that tell of an augmentation, 9 for `GeometricAugmentation`.
            model_channels: channels of the input convolution.
            channel_mult: multiplier of each level.
            num_blocks: encoder blocks of a level; the decoder has one more.
            attention_resolutions: smaller sides of the levels with attention.
            dropout: probability inside the blocks.

        Raises:
            ValueError: if the sizes cannot be halved that often, or model_channels is odd.
        """
        super().__init__()
        C, H, W = self.data_shape = tuple(data_shape)
        self.num_classes = num_classes
        self.stride = 2 ** (len(channel_mult) - 1)
        self._check_size(H, W)
        if model_channels % 2:
            raise ValueError(f"DDPMpp: model_channels is {model_channels}; expected an even number")
        width = 4 * model_channels
        self.embedding_noise = NoiseWaves(model_channels, width)
        self.embedding_label = _initialised(nn.Linear(num_classes, model_channels)) if num_classes else None
        self.embedding_augmentation: nn.Module | None = None
        if augmentation_channels:
            self.embedding_augmentation = _initialised(nn.Linear(augmentation_channels, model_channels, bias=False))

        def block(inputs: int, outputs: int, **options: object) -> DDPMBlock:
            return DDPMBlock(inputs, outputs, embedding_channels=width, dropout=dropout, **options)  # type: ignore[arg-type]

        channels = [model_channels * multiplier for multiplier in channel_mult]
        names = [f"{H >> level}x{W >> level}" for level in range(len(channels))]
        attention = [min(H >> level, W >> level) in attention_resolutions for level in range(len(channels))]
        self.input = _initialised(nn.Conv2d(C, model_channels, 3, padding=1))
        current, skips = model_channels, [model_channels]
        encoder: dict[str, nn.Module] = {}
        for level, name in enumerate(names):
            if level > 0:
                encoder[f"{name}_down"] = block(current, current, resample="down")
                skips.append(current)
            for i in range(num_blocks):
                encoder[f"{name}_block{i}"] = block(current, channels[level], attention=attention[level])
                current = channels[level]
                skips.append(current)
        self.encoder = nn.ModuleDict(encoder)
        decoder: dict[str, nn.Module] = {}
        for level, name in reversed(list(enumerate(names))):
            if level == len(names) - 1:
                decoder[f"{name}_in0"] = block(current, current, attention=True)
                decoder[f"{name}_in1"] = block(current, current)
            else:
                decoder[f"{name}_up"] = block(current, current, resample="up")
            for i in range(num_blocks + 1):
                skip = skips.pop()
                decoder[f"{name}_block{i}"] = block(
                    current + skip,
                    channels[level],
                    skip_channels=skip,
                    attention=attention[level] and i == num_blocks,
                )
                current = channels[level]
        self.decoder = nn.ModuleDict(decoder)
        self.norm = _norm(current)
        self.output = _initialised(nn.Conv2d(current, C, 3, padding=1), NEARLY_NOTHING)

    def _check_size(self, height: int, width: int) -> None:
        """Refuses sizes that the levels cannot halve."""
        if height % self.stride or width % self.stride or not (height and width):
            raise ValueError(
                f"DDPMpp: the size {height}x{width} cannot be halved at every level; "
                f"height and width must be multiples of {self.stride}"
            )

    def embed(self, condition: Tensor | None, batch: int) -> Tensor | None:
        """Embedding `(B, model_channels)` of labels (B,), that of zeros for -1 or None; None if it knows no labels.

        Raises:
            ValueError: if a label is out of range, or the labels are not B integers.
        """
        if self.embedding_label is None:
            return None
        like = next(self.embedding_label.parameters())
        rows = one_hot(condition, self.num_classes, batch=batch, like=like)
        return self.embedding_label(rows * math.sqrt(self.num_classes))

    def augmented(self, embedding: Tensor | None, vector: Tensor) -> Tensor:
        """As `Network.augmented`.

        Raises:
            ValueError: if the network was built without augmentation_channels.
        """
        if self.embedding_augmentation is None:
            raise ValueError("DDPMpp cannot be told how pictures are augmented; expected augmentation_channels: 9")
        told = self.embedding_augmentation(vector.to(next(self.embedding_augmentation.parameters())))
        return told if embedding is None else embedding + told

    def forward(self, x: Tensor, c_noise: Tensor, embedding: Tensor | None) -> Tensor:
        """F `(B, C, H, W)` of the scaled input `x`, `c_noise` (B,) and the `embedding` (B, model_channels).

        Raises:
            ValueError: if height or width of `x` is no multiple of the total stride.
        """
        self._check_size(*x.shape[2:])
        e = self.embedding_noise(c_noise, embedding)
        x = self.input(x.to(self.input.weight.dtype))
        skips = [x]
        for block in self.encoder.values():
            x = block(x, e)
            skips.append(x)
        for block in self.decoder.values():
            if block.skip_channels:
                x = torch.cat([x, skips.pop()], dim=1)
            x = block(x, e)
        return self.output(F.silu(self.norm(x)))
