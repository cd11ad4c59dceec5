"""Direct formulation of the EDM2 denoiser, with the parameter names of published snapshots.

Plain eager PyTorch that normalizes every weight in every forward pass: the baseline of benchmarks, and the oracle of
the importer's tests. Karras et al. 2024, https://arxiv.org/abs/2312.02696, section 2 and appendix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["DirectEDM2"]


def _normal(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    length = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=torch.float32)
    return x / (1e-4 + length * math.sqrt(length.numel() / x.numel())).to(x.dtype)


def _silu(x: Tensor) -> Tensor:
    return F.silu(x) / 0.596


def _sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    return ((1 - t) * a + t * b) / math.sqrt((1 - t) ** 2 + t**2)


def _cat(a: Tensor, b: Tensor, t: float = 0.5) -> Tensor:
    na, nb = a.shape[1], b.shape[1]
    c = math.sqrt((na + nb) / ((1 - t) ** 2 + t**2))
    return torch.cat([a * (c * (1 - t) / math.sqrt(na)), b * (c * t / math.sqrt(nb))], dim=1)


class DirectEDM2(nn.Module):
    """D(x, sigma, one-hot labels) with sigma_data 0.5; all parameters and buffers in one dict `tensors`."""

    def __init__(
        self,
        channels: int,
        resolution: int,
        *,
        num_classes: int,
        model_channels: int,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (16, 8),
        seed: int = 0,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.resolution, self.levels, self.num_blocks = resolution, len(channel_mult), num_blocks
        self.attn_resolutions, self.num_classes = tuple(attn_resolutions), num_classes
        width = [model_channels * multiplier for multiplier in channel_mult]
        tensors: dict[str, Tensor] = {}

        def weight(name: str, *shape: int) -> None:
            tensors[name] = torch.randn(*shape, generator=generator)

        def block(name: str, inputs: int, outputs: int, attention: bool, encoder: bool) -> None:
            tensors[f"{name}.emb_gain"] = torch.zeros(())
            weight(f"{name}.emb_linear.weight", outputs, max(width))
            weight(f"{name}.conv_res0.weight", outputs, outputs if encoder else inputs, 3, 3)
            weight(f"{name}.conv_res1.weight", outputs, outputs, 3, 3)
            if inputs != outputs:
                weight(f"{name}.conv_skip.weight", outputs, inputs, 1, 1)
            if attention:
                weight(f"{name}.attn_qkv.weight", 3 * outputs, outputs, 1, 1)
                weight(f"{name}.attn_proj.weight", outputs, outputs, 1, 1)

        for name, features in (("unet.emb_fourier", width[0]), ("logvar_fourier", 128)):
            tensors[f"{name}.freqs"] = 2 * math.pi * torch.randn(features, generator=generator)
            tensors[f"{name}.phases"] = 2 * math.pi * torch.rand(features, generator=generator)
        weight("unet.emb_noise.weight", max(width), width[0])
        if num_classes:
            weight("unet.emb_label.weight", max(width), num_classes)
        weight("logvar_linear.weight", 1, 128)
        self.encoder, self.decoder = [], []
        here, skips = channels + 1, []
        for level, outputs in enumerate(width):
            side = resolution >> level
            if level == 0:
                weight(f"unet.enc.{side}x{side}_conv.weight", outputs, here, 3, 3)
                here = outputs
            else:
                self.encoder.append(f"{side}x{side}_down")
                block(f"unet.enc.{side}x{side}_down", here, here, False, True)
            skips.append(here)
            for i in range(num_blocks):
                self.encoder.append(f"{side}x{side}_block{i}")
                block(f"unet.enc.{side}x{side}_block{i}", here, outputs, side in attn_resolutions, True)
                here = outputs
                skips.append(here)
        for level, outputs in reversed(list(enumerate(width))):
            side = resolution >> level
            first = [("in0", True), ("in1", False)] if level == len(width) - 1 else [("up", False)]
            for name, attention in first:
                self.decoder.append(f"{side}x{side}_{name}")
                block(f"unet.dec.{side}x{side}_{name}", here, here, attention, False)
            for i in range(num_blocks + 1):
                self.decoder.append(f"{side}x{side}_block{i}")
                name = f"unet.dec.{side}x{side}_block{i}"
                block(name, here + skips.pop(), outputs, side in attn_resolutions, False)
                here = outputs
        weight("unet.out_conv.weight", channels, here, 3, 3)
        tensors["unet.out_gain"] = torch.zeros(())
        self.names = list(tensors)
        for name, tensor in tensors.items():
            buffer = name.endswith(("freqs", "phases"))
            flat = name.replace(".", "/")
            self.register_buffer(flat, tensor) if buffer else self.register_parameter(flat, nn.Parameter(tensor))

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Published name -> parameter or buffer."""
        return {name: getattr(self, name.replace(".", "/")) for name in self.names}

    def _weight(self, name: str, gain: Tensor | float = 1.0) -> Tensor:
        w = getattr(self, name.replace(".", "/"))
        dims = tuple(range(1, w.ndim))
        if self.training:  # forced normalization, as in the paper: at the start of every training forward
            with torch.no_grad():
                w.copy_(_normal(w, dims))
        return _normal(w, dims) * (gain / math.sqrt(w[0].numel()))

    def _conv(self, x: Tensor, name: str, gain: Tensor | float = 1.0) -> Tensor:
        w = self._weight(f"{name}.weight", gain).to(x.dtype)
        return F.conv2d(x, w, padding=w.shape[-1] // 2)

    def _linear(self, x: Tensor, name: str, gain: Tensor | float = 1.0) -> Tensor:
        return x @ self._weight(f"{name}.weight", gain).t().to(x.dtype)

    def _fourier(self, c: Tensor, name: str) -> Tensor:
        tensors = self.tensors
        return (torch.outer(c, tensors[f"{name}.freqs"]) + tensors[f"{name}.phases"]).cos() * math.sqrt(2)

    def _block(self, x: Tensor, e: Tensor, name: str, encoder: bool) -> Tensor:
        tensors = self.tensors
        skip = f"{name}.conv_skip.weight" in tensors
        if name.endswith("_down"):
            x = F.avg_pool2d(x, 2)
        elif name.endswith("_up"):
            x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        if encoder:
            x = _normal(self._conv(x, f"{name}.conv_skip") if skip else x, (1,))
        y = self._conv(_silu(x), f"{name}.conv_res0")
        gain = self._linear(e, f"{name}.emb_linear", tensors[f"{name}.emb_gain"]) + 1
        y = self._conv(_silu(y * gain[:, :, None, None].to(y.dtype)), f"{name}.conv_res1")
        if not encoder and skip:
            x = self._conv(x, f"{name}.conv_skip")
        x = _sum(x, y, 0.3)
        if f"{name}.attn_qkv.weight" in tensors:
            b, c, h, w = x.shape
            heads = max(1, c // 64)
            qkv = self._conv(x, f"{name}.attn_qkv").reshape(b, heads, c // heads, 3, h * w)
            q, k, v = _normal(qkv, (2,)).unbind(3)
            attention = torch.einsum("nhcq,nhck->nhqk", q, k / math.sqrt(q.shape[2])).softmax(3)
            y = torch.einsum("nhqk,nhck->nhcq", attention, v).reshape(b, c, h, w)
            x = _sum(x, self._conv(y, f"{name}.attn_proj"), 0.3)
        return x.clamp(-256, 256)

    def forward(self, x: Tensor, sigma: Tensor, one_hot: Tensor | None = None) -> Tensor:
        """Return D `(B, C, H, W)` of `x` (B, C, H, W), `sigma` (B,) and `one_hot` (B, classes), zeros for no label."""
        s = sigma.reshape(-1, 1, 1, 1)
        root = (s**2 + 0.25).sqrt()
        e = self._linear(self._fourier(sigma.log() / 4, "unet.emb_fourier"), "unet.emb_noise")
        if self.num_classes:
            rows = torch.zeros(len(x), self.num_classes, device=x.device) if one_hot is None else one_hot
            e = _sum(e, self._linear(rows * math.sqrt(self.num_classes), "unet.emb_label"), 0.5)
        e = _silu(e)
        y = torch.cat([x / root, torch.ones_like(x[:, :1])], dim=1)
        y = self._conv(y, f"unet.enc.{self.resolution}x{self.resolution}_conv")
        skips = [y]
        for name in self.encoder:
            y = self._block(y, e, f"unet.enc.{name}", True)
            skips.append(y)
        for name in self.decoder:
            if "block" in name:
                y = _cat(y, skips.pop())
            y = self._block(y, e, f"unet.dec.{name}", False)
        F_x = self._conv(y, "unet.out_conv", self.tensors["unet.out_gain"])
        return 0.25 / root**2 * x + 0.5 * s / root * F_x

    def log_variance(self, sigma: Tensor) -> Tensor:
        """u(sigma) (B,), the uncertainty of the training loss."""
        return self._linear(self._fourier(sigma.log() / 4, "logvar_fourier"), "logvar_linear").squeeze(1)
