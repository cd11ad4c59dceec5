"""The "DDPM++" network of EDM: a U-Net with group normalization, for images of CIFAR-10's size.

Ho et al. 2020, https://arxiv.org/abs/2006.11239; Song et al. 2021, https://arxiv.org/abs/2011.13456, appendix H
(residuals divided by sqrt 2, resampling inside blocks); Karras et al. 2022, https://arxiv.org/abs/2206.00364, table 7
(128 channels, multipliers 2, 2, 2, four blocks, attention at 16x16, augmentation condition). Details not
specified there were chosen to match the published number of parameters, about 55.7 million.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_guide.network import Network
from lightning_guide.networks.ddpmpp_block import EXIT_SCALE, DDPMBlock, group_norm, xavier_init
from lightning_guide.networks.inputs import check_size, one_hot

__all__ = ["DDPMpp", "NoiseWaves", "Waves"]


class Waves(nn.Module):
    """cos and sin of c_noise times 1 ... 1/10,000, (B,) -> (B, channels)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, c_noise: Tensor) -> Tensor:
        """Return `(B, channels)` for `c_noise` (B,)."""
        angles = self.angles(c_noise)
        return torch.cat([angles.cos(), angles.sin()], dim=1)

    def angles(self, c_noise: Tensor) -> Tensor:
        """Return the arguments of cos and sin, (B, channels / 2)."""
        count = self.channels // 2
        powers = torch.arange(count, device=c_noise.device, dtype=torch.float32) / max(count - 1, 1)
        return torch.outer(c_noise.to(torch.float32), 1e-4**powers)


class NoiseWaves(nn.Module):
    """Embedding of noise level and condition: silu(linear(silu(linear(waves(c_noise) + embedding))))."""

    def __init__(self, waves: Waves, embedding_channels: int) -> None:
        super().__init__()
        self.waves = waves
        self.first = xavier_init(nn.Linear(waves.channels, embedding_channels))
        self.second = xavier_init(nn.Linear(embedding_channels, embedding_channels))

    def forward(self, c_noise: Tensor, embedding: Tensor | None) -> Tensor:
        """Return `(B, embedding_channels)` for `c_noise` (B,) and the conditions' `embedding` (B, channels) or None."""
        waves = self.waves(c_noise).to(self.first.weight)
        return F.silu(self.second(F.silu(self.first(waves if embedding is None else waves + embedding))))


class DDPMpp(Network):
    """DDPM++ U-Net F(x, c_noise, embedding) for images (C, H, W), H and W divisible by 2^(levels - 1).

    Level l has model_channels * channel_mult[l] channels. Attention follows every encoder block of a level with
    attention, its last decoder block, and the first block at the lowest level. Names as in `EDM2UNet`.
    """

    waves_type: type[Waves] = Waves
    block_type: type[DDPMBlock] = DDPMBlock
    resizable = True
    parts = {
        "attention": ("decoder.*_in0.attention.core",),
        "block": ("decoder.*_in0",),
        "dropout": ("*.dropout",),
        "noise_embedding": ("embedding_noise.waves",),
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
        """Build the network; weights come from the global generator.

        Args:
            data_shape: (C, H, W) of one x.
            num_classes: number of labels, 0 for an unconditional network.
            augmentation_channels: A of the augmentation parameters (B, A), 9 for `GeometricAugmentation`.
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
        self.num_classes, self.recompute = num_classes, False
        self.stride = 2 ** (len(channel_mult) - 1)
        check_size(type(self).__name__, H, W, stride=self.stride)
        if model_channels % 2:
            raise ValueError(f"{type(self).__name__}: model_channels is {model_channels}; expected an even number")
        width = 4 * model_channels
        waves = self.waves_type(model_channels)
        inside = waves.channels
        self.embedding_noise = NoiseWaves(waves, width)
        self.embedding_label = xavier_init(nn.Linear(num_classes, inside)) if num_classes else None
        self.augmentation_channels = augmentation_channels
        self.embedding_augmentation: nn.Module | None = None
        if augmentation_channels:
            self.embedding_augmentation = xavier_init(nn.Linear(augmentation_channels, inside, bias=False))

        def block(inputs: int, outputs: int, **options: object) -> DDPMBlock:
            options |= {"embedding_channels": width, "dropout": dropout}
            return self.block_type(inputs, outputs, **options)  # type: ignore[arg-type]

        channels = [model_channels * multiplier for multiplier in channel_mult]
        names = [f"{H >> level}x{W >> level}" for level in range(len(channels))]
        attention = [min(H >> level, W >> level) in attention_resolutions for level in range(len(channels))]
        self.input = xavier_init(nn.Conv2d(C, model_channels, 3, padding=1))
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
        self.extend_encoder()
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
        self.stages = [*(f"encoder.{name}" for name in encoder), *(f"decoder.{name}" for name in decoder)]
        self.norm = group_norm(current)
        self.output = xavier_init(nn.Conv2d(current, C, 3, padding=1), EXIT_SCALE)

    def embed(self, condition: Tensor | None, batch: int) -> Tensor | None:
        """Embed labels (B,) as `(B, channels)` of the waves; -1 or None embeds zeros. None without labels.

        Raises:
            ValueError: if a label is out of range, or the labels are not B integers.
        """
        if self.embedding_label is None:
            return None
        like = next(self.embedding_label.parameters())
        rows = one_hot(condition, self.num_classes, batch=batch, like=like)
        return self.embedding_label(rows * math.sqrt(self.num_classes))

    def augmented(self, embedding: Tensor | None, vector: Tensor) -> Tensor:
        """Condition `embedding` on augmentation parameters, as `Network.augmented`.

        Raises:
            ValueError: if the network was built without augmentation_channels, or with another number of them.
        """
        name = type(self).__name__
        if self.embedding_augmentation is None:
            raise ValueError(f"{name} has no input for augmentation parameters; expected augmentation_channels: 9")
        if vector.shape[1] != self.augmentation_channels:
            raise ValueError(
                f"{name} got {vector.shape[1]} augmentation parameters; expected {self.augmentation_channels} "
                "(augmentation_channels)"
            )
        added = self.embedding_augmentation(vector.to(next(self.embedding_augmentation.parameters())))
        return added if embedding is None else embedding + added

    def forward(self, x: Tensor, c_noise: Tensor, embedding: Tensor | None) -> Tensor:
        """Return F `(B, C, H, W)` for the scaled input `x`, `c_noise` (B,) and the `embedding` (B, channels).

        Raises:
            ValueError: if height or width of `x` is not a multiple of the total stride.
        """
        check_size(type(self).__name__, *x.shape[2:], stride=self.stride)
        e = self.embedding_noise(c_noise, embedding)
        skips = self.encode(x.to(self.input.weight.dtype), e)
        x = skips[-1]
        for block in self.decoder.values():
            if block.skip_channels:
                x = torch.cat([x, skips.pop()], dim=1)
            x = self.run(block, x, e)
        return self.output(F.silu(self.norm(x)))

    def extend_encoder(self) -> None:
        """Add the layers that `encode` uses beside the blocks; none here."""

    def encode(self, x: Tensor, e: Tensor) -> list[Tensor]:
        """Return the features after the first convolution and after each block of the encoder."""
        features = [self.input(x)]
        for block in self.encoder.values():
            features.append(self.run(block, features[-1], e))
        return features
