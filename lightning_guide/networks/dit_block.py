"""Block of the diffusion transformer (DiT): self-attention and an MLP, both modulated by the embedding (adaLN-Zero).

Peebles and Xie 2022, "Scalable Diffusion Models with Transformers", https://arxiv.org/abs/2212.09748, section 3.2.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_guide.networks.attention import AttentionCore, CosineAttention

__all__ = ["Modulation", "TokenAttention", "TransformerBlock", "token_norm"]


def token_norm(channels: int) -> nn.LayerNorm:
    """Return a layer normalization of tokens without parameters; the embedding gives scale and shift."""
    return nn.LayerNorm(channels, eps=1e-6, elementwise_affine=False)


class Modulation(nn.Module):
    """Modulation linear(silu(embedding)), split into `count` vectors of `channels` for each sample."""

    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.linear = nn.Linear(channels, count * channels)

    def forward(self, embedding: Tensor) -> tuple[Tensor, ...]:
        """Return `count` tensors `(B, 1, channels)` for `embedding` (B, channels), to broadcast over tokens."""
        return self.linear(F.silu(embedding))[:, None].chunk(self.count, dim=-1)


class TokenAttention(nn.Module):
    """Self-attention output(core(q, k, v)) of tokens (B, N, C), with a replaceable core as in the U-Net.

    The rows of `qkv` factorize as ({q, k, v}, head, channel). With `qk_norm`, queries and keys of each head have unit
    RMS and a learned gain for each channel; values are unchanged.
    """

    def __init__(self, channels: int, heads: int, *, qk_norm: bool = False) -> None:
        super().__init__()
        self.heads = heads
        norm = partial(nn.RMSNorm, channels // heads, eps=1e-6) if qk_norm else nn.Identity
        self.qkv = nn.Linear(channels, 3 * channels)
        self.q_norm, self.k_norm = norm(), norm()
        self.core: AttentionCore = CosineAttention()
        self.output = nn.Linear(channels, channels)

    def forward(self, x: Tensor, grid: tuple[int, int] | None) -> Tensor:
        """Return `(B, N, C)` for `x` (B, N, C), whose tokens lie on `grid` (height, width), row by row."""
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        y = self.core(self.q_norm(q), self.k_norm(k), v, grid)  # (B, heads, N, d)
        return self.output(y.transpose(1, 2).reshape(B, N, C))


class TransformerBlock(nn.Module):
    """DiT block: x + gate attention(modulated norm(x)), then the same with an MLP; initially the identity.

    norm(x) is modulated to (1 + scale) norm(x) + shift; (shift, scale, gate) of both branches come from the embedding.
    """

    def __init__(
        self, channels: int, heads: int, *, mlp_ratio: float = 4.0, qk_norm: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.modulation = Modulation(channels, 6)
        self.norm = token_norm(channels)
        self.attention = TokenAttention(channels, heads, qk_norm=qk_norm)
        from timm.layers import GELUTanh, Mlp  # takes half a second, which other runs save

        self.mlp = Mlp(channels, int(mlp_ratio * channels), act_layer=GELUTanh, drop=(dropout, 0.0))

    def forward(self, x: Tensor, embedding: Tensor, grid: tuple[int, int] | None) -> Tensor:
        """Return `(B, N, C)` for tokens `x` (B, N, C), `embedding` (B, C) and the `grid` (height, width) or None."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.modulation(embedding)
        x = x + gate * self.attention(self.norm(x) * (1 + scale) + shift, grid)
        return x + gate_mlp * self.mlp(self.norm(x) * (1 + scale_mlp) + shift_mlp)
