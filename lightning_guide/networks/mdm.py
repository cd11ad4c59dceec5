"""Motion diffusion model (MDM): a transformer encoder whose tokens are the frames of a motion and one of the condition.

Tevet et al. 2022, "Human Motion Diffusion Model", https://arxiv.org/abs/2209.14916, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_guide.network import Network
from lightning_guide.networks.dit_block import TokenAttention
from lightning_guide.networks.inputs import check_tokens

__all__ = ["MDM", "FrameAttention", "MotionBlock", "TimestepMLP", "sinusoids"]


def sinusoids(positions: Tensor, channels: int) -> Tensor:
    """Return sin(p / 10000^(2 i / C)) and cos(p / 10000^(2 i / C)) in turn, (n, C), of positions p (n,).

    Examples:
        >>> sinusoids(torch.tensor([0.0, 1.0]), 4)
        tensor([[0.0000, 1.0000, 0.0000, 1.0000],
                [0.8415, 0.5403, 0.0100, 0.9999]])
    """
    rates = torch.arange(0, channels, 2, dtype=positions.dtype, device=positions.device) / channels
    angles = positions[:, None] * torch.exp(-math.log(10000) * rates)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


class TimestepMLP(nn.Module):
    """Embedding of timesteps, (B,) -> (B, channels): `sinusoids`, two linear layers, silu between."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.first, self.second = nn.Linear(channels, channels), nn.Linear(channels, channels)

    def forward(self, c_noise: Tensor) -> Tensor:
        """Return `(B, channels)` for timesteps `c_noise` (B,), which may lie between whole ones."""
        waves = sinusoids(c_noise, self.channels).to(self.first.weight)
        return self.second(F.silu(self.first(waves)))


class FrameAttention(TokenAttention):
    """Self-attention of N frames and the token after them; the core computes the frames, as a grid of one row."""

    def forward(self, x: Tensor, grid: tuple[int, int] | None) -> Tensor:
        """Return `(B, N + 1, C)` for `x` (B, N + 1, C) and `grid` (1, N)."""
        assert grid is not None
        B, _, C = x.shape
        N = grid[1]
        q, k, v = self.qkv(x).reshape(B, N + 1, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        frames = self.core(q[..., :N, :], k, v, grid)  # (B, heads, N, d)
        token = F.scaled_dot_product_attention(q[..., N:, :], k, v)
        return self.output(torch.cat([frames, token], dim=-2).transpose(1, 2).reshape(B, N + 1, C))


class MotionBlock(nn.Module):
    """Layer of a transformer encoder, y = norm(x + attention(x)), then norm(y + mlp(y)), of frames and token together.

    The token is a stream of its own, so that perturbations of the frames leave it as it is.
    """

    streams = ("token", "x")

    def __init__(self, channels: int, heads: int, hidden: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention = FrameAttention(channels, heads)
        from timm.layers import Mlp  # takes half a second, which other runs save

        self.mlp = Mlp(channels, hidden, act_layer=nn.GELU, drop=(dropout, 0.0))
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)

    def forward(self, token: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return both for the `token` (B, 1, C) and the frames `x` (B, N, C)."""
        N = x.shape[1]
        y = torch.cat([x, token], dim=1)
        y = self.norm1(y + self.attention(y, (1, N)))
        y = self.norm2(y + self.mlp(y))
        return y[:, N:], y[:, :N]


class MDM(Network):
    """Motion diffusion model F(x, c_noise, embedding) of motions x (features, frames), without or with texts.

    Each frame is a token. One more is the sum of the embeddings of the timestep and of the text, whose embedding
    (B, 1, token_channels) is one vector, zeros for none. It has the position 0, frames have 1, 2, ... The output is
    read from the frames. All motions of a batch have the same number of frames, by default that of `data_shape`.

    The published network for HumanML3D is that of the default sizes, 17,880,327 parameters, with data of (263, 196). It
    predicts x_0 (`SamplePrediction` with cosine betas). The paper does not say which position the condition has, nor
    where the norms are: here after the sums, as in Vaswani et al. 2017.

    Submodules: ``input``, ``blocks.{i}`` with ``attention``, the replaceable ``attention.core`` and ``mlp``,
    ``output``, ``embedding_noise``, ``embedding_text``.
    """

    resizable = True

    def __init__(
        self,
        data_shape: Sequence[int] = (263, 196),
        *,
        token_channels: int = 512,
        channels: int = 512,
        depth: int = 8,
        heads: int = 4,
        hidden: int = 1024,
        dropout: float = 0.0,
        null_condition: bool = False,
    ) -> None:
        """Build the network; weights come from the global generator.

        Args:
            data_shape: (features, frames).
            token_channels: length of the vector of a text; 0: no texts.
            channels: width of the tokens.
            depth: number of blocks.
            heads: attention heads of each block.
            hidden: width of the hidden layer of the MLPs.
            dropout: probability, at the hidden layer of the MLPs.
            null_condition: whether the weights that are loaded were trained without texts as well.

        Raises:
            ValueError: if the data are no sequences, or the heads do not fit the channels.
        """
        super().__init__()
        if len(data_shape) != 2:
            raise ValueError(f"MDM: data_shape is {tuple(data_shape)}; expected (features, frames)")
        if channels % heads or channels % 2:
            raise ValueError(f"MDM: {channels} channels must be a multiple of {heads} heads and of 2")
        self.data_shape, self.num_classes, self.token_channels = tuple(data_shape), 0, token_channels
        self.null_condition, self.recompute = null_condition, False
        self.input = nn.Linear(data_shape[0], channels)
        self.embedding_noise = TimestepMLP(channels)
        self.embedding_text = nn.Linear(token_channels, channels) if token_channels else None
        self.blocks = nn.ModuleList(MotionBlock(channels, heads, hidden, dropout=dropout) for _ in range(depth))
        self.output = nn.Linear(channels, data_shape[0])
        middle = f"blocks.{depth // 2}"
        self.stages = ["blocks.*"]
        self.parts = {
            "attention": (f"{middle}.attention.core",),
            "block": (middle,),
            "dropout": ("blocks.*.mlp.drop1",),
            "noise_embedding": ("embedding_noise",),
        }
        if token_channels:
            self.parts["label_embedding"] = ("embedding_text",)

    def embed(self, condition: Tensor | None, batch: int) -> Tensor | None:
        """Embed vectors of texts (B, 1, token_channels) as `(B, channels)`; zeros are no text. None without texts.

        Raises:
            ValueError: if the condition has another shape or type.
        """
        if self.embedding_text is None:
            return None
        tokens = check_tokens(condition, self.token_channels, batch=batch, like=self.embedding_text.weight)
        if tokens.shape[1] != 1:
            raise ValueError(f"the condition has {tokens.shape[1]} tokens; MDM reads one, the vector of the whole text")
        return self.embedding_text(tokens[:, 0])

    def forward(self, x: Tensor, c_noise: Tensor, embedding: Tensor | None) -> Tensor:
        """Return F `(B, features, frames)` for the scaled input `x`, timesteps `c_noise` (B,) and `embedding`."""
        token = self.embedding_noise(c_noise)
        if embedding is not None:
            token = token + embedding
        frames = self.input(x.to(self.input.weight.dtype).mT)  # (B, frames, channels)
        places = torch.arange(frames.shape[1] + 1, dtype=c_noise.dtype, device=x.device)
        positions = sinusoids(places, frames.shape[2]).to(frames.dtype)
        token, frames = token[:, None] + positions[:1], frames + positions[1:]
        for block in self.blocks:
            token, frames = self.run(block, token, frames)
        return self.output(frames).mT
