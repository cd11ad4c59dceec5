"""Saliency mask of self-attention guidance (SAG): the class-token attention of a vision transformer (DINO).

The external mask in the ablation of Hong et al. 2022, https://arxiv.org/abs/2210.00939; DINO: Caron et al. 2021,
https://arxiv.org/abs/2104.14294, whose class token attends to objects in the last block.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_guide.denoiser import Denoiser, Trajectory
from lightning_guide.guidance.negatives.sag_masks import Mask, MaskAt
from lightning_guide.pretrained.frozen import FrozenNetwork
from lightning_guide.pretrained.loading import timm_input, timm_model
from lightning_guide.utils.images import preprocess_image
from lightning_guide.utils.modules import replace_modules

__all__ = ["SaliencyMask"]


class _ClassAttention(nn.Module):
    """A timm attention layer that records the attention of the class token to each patch, `received` (B, patches)."""

    received: Tensor

    def __init__(self, attention: Any, prefix: int) -> None:
        super().__init__()
        self.attention, self.prefix = attention, prefix

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        B, N, _ = x.shape
        layer = self.attention
        q, k, _ = layer.qkv(x).reshape(B, N, 3, layer.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k = layer.q_norm(q[:, :, :1]), layer.k_norm(k)
        scores = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(dim=-1)  # (B, heads, 1, N)
        self.received = scores[:, :, 0, self.prefix :].mean(dim=1)
        return layer(x, *args, **kwargs)


class SaliencyMask(Mask, FrozenNetwork):
    """M = (saliency > psi mean saliency), the saliency being the attention of the class token in the last block.

    The clean estimate is read as an image in [-1, 1], clamped, resized and normalized as in the training of the
    transformer; one channel is repeated. The mask does not apply to latents. Each mask costs a forward pass of the
    transformer, which is not counted among the evaluations. The transformer is loaded at first use.
    """

    def __init__(
        self, name: str = "vit_small_patch16_224.dino", *, weights: str | None = None, psi: float = 1.0
    ) -> None:
        """`name`: a vision transformer of timm; `weights`: a local file, None for timm's own download."""
        self.name, self.weights, self.psi = name, weights, psi

    def check(self, model: Denoiser) -> None:
        """Refuse images without one or three channels."""
        if model.data_shape[0] not in (1, 3):
            raise ValueError(f"SaliencyMask needs images of 1 or 3 channels, got {model.data_shape[0]}")

    def start_mask(self, model: Denoiser, trajectory: Trajectory) -> tuple[Denoiser, MaskAt]:
        """Return the model and the thresholded saliency."""
        self.check(model)
        return model, self._mask

    def _mask(self, clean: Tensor) -> Tensor:
        saliency = self.saliency(clean)
        saliency = F.interpolate(saliency, tuple(clean.shape[2:]), mode="nearest-exact")
        return (saliency > self.psi * saliency.mean((2, 3), keepdim=True)).to(clean)

    @torch.no_grad()
    def saliency(self, clean: Tensor) -> Tensor:
        """Return the attention of the class token to each patch of `clean` (B, C, H, W), float32 (B, 1, h, w)."""
        model = self.network(clean)
        image = preprocess_image(((clean.to(torch.float32) + 1) / 2).clamp(0, 1), **timm_input(model))
        with torch.autocast(clean.device.type, enabled=False):
            model.forward_features(image)
        return model.blocks[-1].attn.received.unflatten(1, (1, *model.patch_embed.grid_size))

    def _load(self) -> nn.Module:
        """Return the transformer with an observed last attention layer."""
        model = timm_model(self.name, weights=self.weights)
        last = getattr(model, "blocks", [None])[-1]
        if not hasattr(getattr(last, "attn", None), "qkv") or getattr(model, "cls_token", None) is None:
            raise ValueError(f"SaliencyMask needs a vision transformer with a class token; {self.name} is not one")
        observed = _ClassAttention(last.attn, model.num_prefix_tokens)
        return replace_modules(model, {f"blocks.{len(model.blocks) - 1}.attn": observed})
