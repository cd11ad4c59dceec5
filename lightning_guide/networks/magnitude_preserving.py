"""Magnitude-preserving layers: unit root-mean-square (RMS) in, unit RMS out, in expectation.

Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models",
https://arxiv.org/abs/2312.02696, section 2 and its appendix.

Forced weight normalization is not part of the forward pass. `normalize_weights_` projects all weights of a module tree
onto their spheres in one pass; `constrain()` of a network calls it at construction and after every optimizer step. The
paper projects at the start of each training forward, which is the same sequence of projections: the one before step
k + 1 is the one after step k. The difference is the state between two steps: here averages and checkpoints use
projected weights, in the paper the weights after Adam's step, off the sphere by O(lr^2).
The forward pass normalizes again, with gradient, so that the gradient is tangent to the sphere, and so that averaged
weights, which lie inside the sphere, need no special treatment.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from lightning_guide.networks.rms_norm import EPSILON, Normalized, norm
from lightning_guide.utils.modules import shallow_clone

__all__ = [
    "MPConv",
    "MPFourier",
    "MPLinear",
    "mp_cat",
    "mp_silu",
    "mp_sum",
    "mp_sum_weights",
    "normalize_weights_",
    "with_fused_weights",
]


Module = TypeVar("Module", bound=nn.Module)


SILU_RMS = 0.596  # sqrt(E[silu(z)^2]) of z ~ N(0, 1), rounded as in the paper


def mp_silu(x: Tensor) -> Tensor:
    """Return silu(x) / 0.596; 0.596 is the RMS of silu(z), z ~ N(0, 1)."""
    return F.silu(x) * (1 / SILU_RMS)


def mp_sum(a: Tensor, b: Tensor, t: float = 0.5) -> Tensor:
    """Return ((1 - t) a + t b) / sqrt((1 - t)^2 + t^2), for `a` and `b` of one shape."""
    weight_a, weight_b = mp_sum_weights(t)
    return torch.add(a * weight_a, b, alpha=weight_b)


def mp_sum_weights(t: float) -> tuple[float, float]:
    """Return the weights of a and b in `mp_sum`, (1 - t, t) / sqrt((1 - t)^2 + t^2)."""
    root = math.hypot(1 - t, t)
    return (1 - t) / root, t / root


def mp_cat(a: Tensor, b: Tensor, t: float = 0.5) -> Tensor:
    """Concatenate channels of `a` (B, Na, *) and `b` (B, Nb, *), weighted to contribute energy (1 - t)^2 : t^2.

    [C (1 - t) / sqrt(Na) a, C t / sqrt(Nb) b] with C = sqrt((Na + Nb) / ((1 - t)^2 + t^2)), `(B, Na + Nb, *)`.
    """
    Na, Nb = a.shape[1], b.shape[1]
    C = math.sqrt(Na + Nb) / math.hypot(1 - t, t)
    scaled = ((a, C * (1 - t) / math.sqrt(Na)), (b, C * t / math.sqrt(Nb)))
    return torch.cat([x if math.isclose(factor, 1) else x * factor for x, factor in scaled], dim=1)


class MPFourier(nn.Module):
    """Random Fourier features sqrt(2) cos(f a + phi) of a scalar, (B,) -> (B, channels).

    f = 2 pi bandwidth N(0, 1) and phi = 2 pi U(0, 1) are buffers, drawn from a separate generator: the same `seed`
    gives the same features, independent of the global generator. Computed in float32 or wider.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, channels: int, *, bandwidth: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        frequencies = torch.randn(channels, generator=generator, device="cpu") * (2 * math.pi * bandwidth)
        phases = torch.rand(channels, generator=generator, device="cpu") * (2 * math.pi)
        device = torch.get_default_device()
        self.register_buffer("frequencies", frequencies.to(device))
        self.register_buffer("phases", phases.to(device))

    def forward(self, a: Tensor) -> Tensor:
        """Return the features `(B, channels)` of `a` (B,)."""
        dtype = torch.promote_types(self.frequencies.dtype, torch.float32)
        angles = torch.outer(a.to(dtype), self.frequencies.to(dtype)) + self.phases.to(dtype)
        return angles.cos() * math.sqrt(2)


class _MPWeight(nn.Module, ABC):
    """Base of layers with a weight (out, *) of normalized rows, no bias, and an optional learned gain.

    `scale` is a constant factor of the result. As part of the weight it saves a pass over all activations.
    """

    weight: nn.Parameter
    gain: nn.Parameter | None

    def __init__(self, shape: Sequence[int], learned_gain: bool, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(*shape))
        self.gain = nn.Parameter(torch.zeros(())) if learned_gain else None
        self.scale = scale

    def effective_weight(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the matrix scale * gain * normalize(weight) / sqrt(fan_in), with rows of norm scale * gain.

        Its gradient with respect to `weight` is tangent to the sphere of each row. `dtype` is by default that of
        `weight`.
        """
        layout = torch.channels_last if self.weight.ndim == 4 else torch.contiguous_format
        axes, scale = tuple(range(1, self.weight.ndim)), self.scale / math.sqrt(self.weight[0].numel())
        return Normalized.apply(self.weight, self.gain, axes, scale, dtype or self.weight.dtype, layout)

    @staticmethod
    @abstractmethod
    def multiply(x: Tensor, weight: Tensor) -> Tensor:
        """Apply the layer with the matrix `weight`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the result in the dtype of `x`."""
        return self.multiply(x, self.effective_weight(_dtype_of_use(x)))


def _dtype_of_use(x: Tensor) -> torch.dtype:
    """Return the dtype in which layers multiply `x`."""
    kind = x.device.type
    lower = x.dtype != torch.float64 and torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if lower else x.dtype


class MPLinear(_MPWeight):
    """Magnitude-preserving linear layer: x W^T with normalized rows and no bias, (*, in) -> (*, out).

    With `learned_gain` the result is multiplied by a learned scalar that starts at 0, with `scale` by a constant.
    """

    def __init__(self, in_features: int, out_features: int, *, learned_gain: bool = False, scale: float = 1.0) -> None:
        super().__init__((out_features, in_features), learned_gain, scale)

    @staticmethod
    def multiply(x: Tensor, weight: Tensor) -> Tensor:
        """Return `(*, out)` for `x` (*, in)."""
        return F.linear(x, weight)


class MPConv(_MPWeight):
    """Magnitude-preserving 2D convolution: normalized filters, zero padding, no bias, (B, in, H, W) -> (B, out, H, W).

    `kernel` is odd. With `learned_gain` the result is multiplied by a learned scalar that starts at 0, with `scale` by
    a constant.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, kernel: int, learned_gain: bool = False, scale: float = 1.0
    ) -> None:
        super().__init__((out_channels, in_channels, kernel, kernel), learned_gain, scale)

    @staticmethod
    def multiply(x: Tensor, weight: Tensor) -> Tensor:
        """Return `(B, out, H, W)` for `x` (B, in, H, W)."""
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)


class _FusedLayer(nn.Module):
    """Inference-only copy of an MP layer with its precomputed matrix."""

    def __init__(self, layer: _MPWeight) -> None:
        super().__init__()
        weight = layer.effective_weight().detach()
        layout = torch.channels_last if weight.ndim == 4 else torch.contiguous_format
        self.weight = nn.Parameter(weight.contiguous(memory_format=layout), requires_grad=False)
        self.multiply = layer.multiply

    def forward(self, x: Tensor) -> Tensor:
        return self.multiply(x, self.weight.to(x.dtype))


def with_fused_weights(root: Module) -> Module:
    """Return a shallow clone of `root` in which every MP layer multiplies by its precomputed matrix.

    The clone computes the same as `root` does now. It is frozen; later changes of the weights are not reflected.
    """
    tree = shallow_clone(root)
    layers = [(name, layer) for name, layer in tree.named_modules() if isinstance(layer, _MPWeight)]
    for name, layer in layers:
        tree.set_submodule(name, _FusedLayer(layer).train(layer.training))
    return tree


@torch.no_grad()
def normalize_weights_(module: nn.Module) -> None:
    """Apply forced weight normalization in place: every row of every MP weight in `module` gets RMS 1.

    weight <- weight / (1e-4 + RMS of the row), so that the norm is sqrt(fan_in) (1 - O(1e-4)). Gains and other
    parameters are unchanged. Each weight is read once and written once.
    """
    given = [part.weight for part in module.modules() if isinstance(part, _MPWeight)]
    if not given:
        return
    weights = [weight.to_local() if isinstance(weight, DTensor) else weight for weight in given]  # shards of whole rows
    divisors = [norm(weight, tuple(range(1, weight.ndim))) for weight in weights]
    torch._foreach_div_(divisors, [math.sqrt(weight.shape[1:].numel()) for weight in weights])
    torch._foreach_add_(divisors, EPSILON)
    torch._foreach_div_(weights, divisors)
