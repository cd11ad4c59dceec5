"""MLP with a scalar log-density G whose gradient is the score, the network of the 2D toy example.

Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of Itself", https://arxiv.org/abs/2406.02507,
the appendix on the 2D toy example.

    u  = [x / sqrt(s^2 + s_d^2), ln(s) / 4, 1]
    h  = W_0 u,  then `layers` times  h <- W mp_silu(h)
    G  = g mean(h^2) / s - |x|^2 / (2 (s^2 + s_d^2)),      score = grad_x G,      D = x + s^2 score

with s = sigma, s_d = sigma_data, magnitude-preserving W and a learned scalar g that starts at -0.1. The gradient is
computed explicitly, with the same number of matrix products, by the transposed weights:

    d_L = h_L,   d_{l-1} = silu'(h_{l-1}) / 0.596 * (W_l^T d_l),
    score = 2 g / (H s sqrt(s^2 + s_d^2)) (W_0^T d_0)_x - x / (s^2 + s_d^2).

So the score works under `torch.inference_mode`, and training takes one ordinary backward pass, no double backward.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lightning_guide.denoiser import Denoiser, expand
from lightning_guide.networks.magnitude_preserving import SILU_RMS, MPLinear, mp_silu, normalize_weights_

__all__ = ["LogDensityMLP"]


class _GradientOfHalfSquare(torch.autograd.Function):
    """(u, n, W_0 .. W_L) -> v, the gradient of |h_L|^2 / 2 with respect to the first n columns of u, `(B, n)`.

    h_0 = u W_0^T and h_l = silu(h_{l-1}) W_l^T. Going down, d_L = h_L, e_l = d_l W_l, d_{l-1} = e_l * silu'(h_{l-1})
    and v = d_0 W_0. Both passes work in place on few buffers, since memory traffic costs as much as the products.
    Differentiable once.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, n: int, first: Tensor, *weights: Tensor) -> Tensor:
        """Return v `(B, n)` for u (B, m), W_0 (H, m) and W_1 .. W_L (H, H)."""
        keep = any(ctx.needs_input_grad)
        h = torch.mm(u, first.T)
        activations, slopes, bends, downs = [], [], [], []
        for weight in weights:
            gate = torch.sigmoid(h)
            a = h.mul_(gate)  # silu(h)
            rest = 1 - gate
            if keep:  # silu''(h) = rest (2 gate + a (rest - gate))
                bends.append((rest - gate).mul_(a).add_(gate, alpha=2).mul_(rest))
                activations.append(a)
            slopes.append(gate.addcmul_(a, rest))  # silu'(h)
            h = torch.mm(a, weight.T)
        d = h
        for level in reversed(range(len(weights))):
            e = torch.mm(d, weights[level])
            if keep:
                downs.append(d)
                bends[level].mul_(e)
            d = e.mul_(slopes[level])
        if keep:
            ctx.levels, ctx.n = len(weights), n
            ctx.save_for_backward(u, d, first, *weights, *activations, *slopes, *bends, *reversed(downs))
        return torch.mm(d, first[:, :n])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dv: Tensor) -> tuple[Tensor | None, ...]:
        """Return the products of dv with the derivatives: up through the second pass, then down through the first."""
        u, d_0, first, *rest = ctx.saved_tensors
        weights, activations, slopes, bends, downs = (
            rest[i * ctx.levels : (i + 1) * ctx.levels] for i in range(len(rest) // ctx.levels)
        )
        by_first = torch.zeros_like(first)
        by_first[:, : ctx.n] = torch.mm(d_0.T, dv)
        x = torch.mm(dv, first[:, : ctx.n].T)
        by_weights, by_slope = [], []
        for weight, slope, bend, down in zip(weights, slopes, bends, downs, strict=True):
            by_slope.append(x * bend)
            x.mul_(slope)
            by_weights.append(torch.mm(down.T, x))
            x = torch.mm(x, weight.T)
        for level in reversed(range(ctx.levels)):
            by_weights[level].addmm_(x.T, activations[level])
            x = by_slope[level].addcmul_(torch.mm(x, weights[level]), slopes[level])
        by_first.addmm_(x.T, u)
        return torch.mm(x, first), None, by_first, *by_weights


class LogDensityMLP(Denoiser):
    """MLP with a log-density: D = x + sigma^2 grad_x G for points x (B, dimensions), unconditional; labels are ignored.

    16,641 parameters at width 64, 4,225 at width 32 (2 dimensions, 4 layers).
    """

    def __init__(self, *, width: int = 64, layers: int = 4, dimensions: int = 2, sigma_data: float = 0.5) -> None:
        """Build a network of `layers` hidden layers of `width` units.

        Raises:
            ValueError: if a size is not positive.
        """
        super().__init__()
        for name, size in (("width", width), ("layers", layers), ("dimensions", dimensions)):
            if size < 1:
                raise ValueError(f"LogDensityMLP: {name} must be positive, got {size}")
        self.data_shape = (dimensions,)
        self.num_classes = 0
        self.sigma_data = sigma_data
        self.input = MPLinear(dimensions + 2, width)
        self.layers = nn.ModuleList(MPLinear(width, width) for _ in range(layers))
        # The published network starts at 0, so that the sign of g, and with it the kind of density that is learned, is
        # random. With g > 0 the samples of the study had 18 % outliers, with g < 0 from the same seed 13 %.
        self.gain = nn.Parameter(torch.tensor(-0.1))
        self.constrain()

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return D `(B, d)` for `x` (B, d) at `sigma` (B,) or ().

        Computed as s_d^2 / (s^2 + s_d^2) x + s^2 grad_x (g mean(h^2) / s), which loses no digits at large sigma.
        """
        variance = expand(sigma, x) ** 2
        return x * (self.sigma_data**2 / (variance + self.sigma_data**2)) + variance * self._learned_score(x, sigma)

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return grad_x G `(B, d)` for `x` (B, d) at `sigma` (B,) or (), differentiable in parameters, x and sigma."""
        return self._learned_score(x, sigma) - x / (expand(sigma, x) ** 2 + self.sigma_data**2)

    def log_density(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return G `(B,)`, the logarithm of p(x; sigma) up to a constant that depends on sigma."""
        h = self.input(self._inputs(x, sigma))
        for layer in self.layers:
            h = layer(mp_silu(h))
        gaussian = x.square().sum(dim=1) / (2 * (sigma**2 + self.sigma_data**2))
        return self.gain * h.square().mean(dim=1) / sigma - gaussian

    def constrain(self) -> None:
        """Apply forced weight normalization (`normalize_weights_`)."""
        normalize_weights_(self)

    def _inputs(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return u = [c_in x, ln(sigma) / 4, 1], `(B, d + 2)`."""
        s = expand(sigma, x)
        c_noise = (s.log() / 4).expand(len(x), 1)
        return torch.cat([x * (s**2 + self.sigma_data**2).rsqrt(), c_noise, torch.ones_like(c_noise)], dim=1)

    def _learned_score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return grad_x (g mean(h^2) / sigma), `(B, d)`, by the explicit chain rule, in float32 even under autocast."""
        with torch.autocast(x.device.type, enabled=False):
            first = self.input.effective_weight()
            weights = [cast(MPLinear, layer).effective_weight() / SILU_RMS for layer in self.layers]
            v = _GradientOfHalfSquare.apply(self._inputs(x, sigma), x.shape[1], first, *weights)
            s = expand(sigma, x)
            return self.gain * (2 / len(first)) * (s**2 + self.sigma_data**2).rsqrt() / s * v
