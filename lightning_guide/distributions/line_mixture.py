"""Mixtures of Gaussians on lines in the plane, with fast exact density, score and denoiser."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser
from lightning_guide.distributions.gaussian_mixture import GaussianMixture
from lightning_guide.distributions.line_sums import WORK_ARRAYS, Lines, LineSums, line_sums
from lightning_guide.utils.devices import to_device

__all__ = ["LineMixture"]


# Points times lines in one chunk. On a CPU the limit is just below the size at which PyTorch splits an operation over
# threads: a hundred barriers per chunk gain little on an idle machine and are a hundred times slower on a busy one.
# The work arrays of a chunk then also fit the cache of one core.
ELEMENTS_CPU, ELEMENTS_ACCELERATOR = 2**15 - 1, 2**24


class LineMixture(Denoiser):
    """Mixture of N lines (branches) of J Gaussians each, as an exact unconditional denoiser.

    The components of line b have the weight w_b / J, the covariance Sigma_b and the means a_b + f_j e_b, with
    the same fractions f_j on every line. p(x; sigma) is the mixture with Sigma_b + sigma^2 I (see `line_sums`).

    Points are `x` (B, 2); noise levels `sigma`, tensors or numbers, are (B,) or () and may be 0. Results have
    the dtype of `x`, float32 or float64, and are finite for points as far out as 1e15. If a gradient with
    respect to `x` or `sigma` is needed, the generic mixture (`as_mixture`) computes the result, more slowly.
    """

    starts: Tensor
    vectors: Tensor
    covariances: Tensor
    eigenvalues: Tensor
    axes: Tensor
    branch_weights: Tensor
    fractions: Tensor
    cumulative: Tensor
    roots: Tensor

    def __init__(
        self,
        starts: Tensor,
        vectors: Tensor,
        covariances: Tensor,
        weights: Tensor,
        fractions: Tensor,
        *,
        sigma_data: float = 0.5,
    ) -> None:
        """Set `starts` a and `vectors` e (N, 2), `covariances` (N, 2, 2), `weights` (N,), ascending `fractions` (J,).

        Raises:
            ValueError: if the shapes disagree, a vector is 0 or a covariance is not positive definite.
        """
        super().__init__()
        N = len(starts)
        shapes = [tuple(tensor.shape) for tensor in (starts, vectors, covariances, weights)]
        if shapes != [(N, 2), (N, 2), (N, 2, 2), (N,)] or fractions.ndim != 1:
            raise ValueError(
                "a line mixture needs starts (N, 2), vectors (N, 2), covariances (N, 2, 2), weights (N,) "
                f"and fractions (J,), got {', '.join(map(str, shapes))} and {tuple(fractions.shape)}"
            )
        eigenvalues, axes = torch.linalg.eigh(covariances.double())
        if bool((vectors == 0).all(1).any()) or bool((eigenvalues <= 0).any()):
            raise ValueError("every line needs a vector other than 0 and a positive definite covariance")
        self.data_shape, self.num_classes, self.sigma_data = (2,), 0, sigma_data
        # All are functions of the arguments and therefore not in state dicts.
        self.register_buffer("starts", starts.double(), persistent=False)
        self.register_buffer("vectors", vectors.double(), persistent=False)
        self.register_buffer("covariances", covariances.double(), persistent=False)
        self.register_buffer("eigenvalues", eigenvalues, persistent=False)
        self.register_buffer("axes", axes, persistent=False)
        self.register_buffer("branch_weights", weights.double() / weights.double().sum(), persistent=False)
        self.register_buffer("fractions", fractions.double(), persistent=False)
        self.register_buffer("cumulative", self.branch_weights.cumsum(0), persistent=False)
        self.register_buffer("roots", axes * eigenvalues.sqrt()[:, None], persistent=False)  # R R^T = Sigma_b
        middle = (self.fractions[0] + self.fractions[-1]) / 2
        self._offsets = tuple((self.fractions - middle).tolist())  # on the host, where they are read

    @property
    def branches(self) -> int:
        """Number N of lines."""
        return len(self.starts)

    @property
    def components(self) -> int:
        """Number N J of Gaussians; component k belongs to line k // J."""
        return len(self.starts) * len(self.fractions)

    def as_mixture(self) -> GaussianMixture:
        """Return the same distribution as a generic mixture of N J Gaussians."""
        J = len(self.fractions)
        means = self.starts[:, None] + self.fractions[:, None] * self.vectors[:, None]  # (N, J, 2)
        weights = self.branch_weights.repeat_interleave(J)
        mixture = GaussianMixture(
            means.flatten(0, 1), self.covariances.repeat_interleave(J, 0), weights, sigma_data=self.sigma_data
        )
        return mixture.to(self.starts.device)

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw `count` points `(count, 2)`, float32, and the component of each `(count,)`.

        Numbers are drawn on the generator's device and returned on that of the mixture.
        """
        u = torch.rand(count, 2, generator=generator, dtype=torch.float64, device=generator.device)
        z = torch.randn(count, 2, generator=generator, dtype=torch.float64, device=generator.device)
        return self._place(u, z)

    def sample_each(self, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        """Draw `sample(1, generator)` for each of B CPU generators: points `(B, 2)` and their components `(B,)`."""
        u, z = torch.empty(2, len(generators), 2, dtype=torch.float64)
        for generator, uniform, normal in zip(generators, u, z, strict=True):
            uniform.uniform_(generator=generator)
            normal.normal_(generator=generator)
        return self._place(u, z)

    def _place(self, u: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return points and components from uniform `u` and normal `z` (B, 2)."""
        u, z, J = to_device(u, self.starts.device), to_device(z, self.starts.device), len(self.fractions)
        branch = torch.searchsorted(self.cumulative, u[:, 0].contiguous(), right=True).clamp_(max=self.branches - 1)
        place = (u[:, 1] * J).long()
        mean = self.starts[branch] + self.fractions[place, None] * self.vectors[branch]
        x = mean + (self.roots[branch] * z[:, None]).sum(-1)
        return x.float(), branch * J + place

    def log_density(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Return ln p(x; sigma) `(B,)`.

        Raises:
            ValueError: like the other methods, if `x` is not (B, 2) or `sigma` neither (B,) nor ().
        """
        if self._needs_gradient(x, sigma):
            return self.as_mixture().log_density(x, torch.as_tensor(sigma))
        constant = math.log(2 * math.pi * len(self.fractions))
        return self._map(x, sigma, lambda sums, _: sums.total.log() + sums.peak - constant)

    def score(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Return the gradient of ln p(x; sigma) with respect to x, `(B, 2)`."""
        if self._needs_gradient(x, sigma):
            return self.as_mixture().score(x, torch.as_tensor(sigma))

        def read(sums: LineSums, lines: Lines) -> Tensor:
            pull = sums.v1 @ lines.axes[0].T + sums.v2 @ lines.axes[1].T
            return pull / sums.total[:, None]

        return self._map(x, sigma, read)

    def denoise(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Return E[x_0 | x] = x + sigma^2 score, `(B, 2)`, in a form that loses no digits at large sigma."""
        if self._needs_gradient(x, sigma):
            return self.as_mixture()(x, torch.as_tensor(sigma))

        def read(sums: LineSums, lines: Lines) -> Tensor:
            scaled = lines.axes * lines.eigenvalues[:, None]  # E[x_0 | x, f] = c + f e - Sigma P (f e - u)
            mean = sums.Z @ lines.center.T + sums.F @ lines.vector.T
            mean = mean - sums.v1 @ scaled[0].T - sums.v2 @ scaled[1].T
            return mean / sums.total[:, None]

        return self._map(x, sigma, read)

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return `denoise(x, sigma)`; `condition` is ignored, since there are no classes."""
        return self.denoise(x, sigma)

    def responsibilities(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Return the posterior probability of each line, `(B, N)`; rows sum to 1. Has no gradient."""
        return self._map(x, sigma, lambda sums, _: sums.Z / sums.total[:, None])

    @staticmethod
    def _needs_gradient(x: Tensor, sigma: Tensor | float) -> bool:
        return torch.is_grad_enabled() and (x.requires_grad or (isinstance(sigma, Tensor) and sigma.requires_grad))

    @torch.no_grad()
    def _map(self, x: Tensor, sigma: Tensor | float, read: Callable[[LineSums, Lines], Tensor]) -> Tensor:
        """Compute the sums of the points in chunks and concatenate the results of `read`."""
        if x.ndim != 2 or x.shape[1] != 2:
            raise ValueError(f"points of a line mixture have the shape (B, 2), got {tuple(x.shape)}")
        sigma = sigma.to(x) if isinstance(sigma, Tensor) else x.new_full((), sigma)
        if sigma.ndim and sigma.shape != x.shape[:1]:
            raise ValueError(f"sigma has the shape {tuple(sigma.shape)}; expected () or ({len(x)},) for these points")
        lines = self._lines(x)
        elements = ELEMENTS_CPU if x.device.type == "cpu" else ELEMENTS_ACCELERATOR
        rows = max(1, min(elements // self.branches, len(x)))
        work = x.new_empty(WORK_ARRAYS, rows, self.branches)
        levels = sigma.expand(len(x)).split(rows)
        chunks = zip(x.split(rows), levels, strict=True)
        return torch.cat([read(line_sums(part, s, lines, work[:, : len(part)]), lines) for part, s in chunks])

    def _lines(self, like: Tensor) -> Lines:
        """Return the lines in the dtype and on the device of `like`."""
        middle = (self.fractions[0] + self.fractions[-1]) / 2
        return Lines(
            center=(self.starts + middle * self.vectors).T.to(like).contiguous(),
            vector=self.vectors.T.to(like).contiguous(),
            along=(self.axes * self.vectors[:, :, None]).sum(1).T.to(like).contiguous(),
            eigenvalues=self.eigenvalues.T.to(like).contiguous(),
            axes=self.axes.permute(2, 1, 0).to(like).contiguous(),
            weights=self.branch_weights.to(like),
            fractions=self._offsets,
        )
