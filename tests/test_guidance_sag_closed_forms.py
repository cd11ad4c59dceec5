"""Self-attention guidance (SAG) and blur guidance: closed forms, and the formula of the paper."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser, Trajectory, expand
from lightning_guide.guidance.negatives import (
    FullMask,
    Mask,
    SelfAttentionGuidance,
)
from lightning_guide.guidance.negatives.sag_masks import MaskAt
from lightning_guide.seeds import SampleSeeds
from lightning_guide.utils.images import gaussian_blur

SHAPE = (2, 8, 12)


class Linear(Denoiser):
    """D(x) = A x / (1 + sigma), A (n, n) on the flattened image."""

    num_classes, sigma_data = 0, 0.5

    def __init__(self, A: Tensor, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.A, self.data_shape = A, shape

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        return (x.flatten(1) @ self.A.T).reshape(x.shape) / (1 + expand(sigma, x))


class Curved(Linear):
    """D(x) = tanh(A x) / (1 + sigma)."""

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        return super().forward(x, 0 * sigma).tanh() / (1 + expand(sigma, x))


class LeftHalf(Mask):
    """M = 1 in the left half."""

    def start_mask(self, model: Denoiser, trajectory: Trajectory) -> tuple[Denoiser, MaskAt]:
        def mask(clean: Tensor) -> Tensor:
            M = torch.zeros_like(clean[:, :1])
            M[..., : clean.shape[-1] // 2] = 1
            return M

        return model, mask


def reflected(i: int, n: int) -> int:
    """Index of the pixel at place i outside 0 ... n - 1."""
    return -i if i < 0 else 2 * (n - 1) - i if i >= n else i


def blur_matrix(shape: tuple[int, ...], sigma: float, radius: int) -> Tensor:
    """The blur of images of `shape` as a matrix, from its definition, one entry at a time."""
    factors = []
    for n in shape[1:]:
        reach = min(radius, n - 1)
        weights = {i: 2.718281828459045 ** (-0.5 * (i / sigma) ** 2) for i in range(-reach, reach + 1)}
        matrix = torch.zeros(n, n, dtype=torch.float64)
        for row in range(n):
            for i, weight in weights.items():
                matrix[row, reflected(row + i, n)] += weight / sum(weights.values())
        factors.append(matrix)
    return torch.kron(torch.eye(shape[0], dtype=torch.float64), torch.kron(*factors))


def problem(shape: tuple[int, ...] = SHAPE) -> tuple[Tensor, Tensor, Tensor]:
    """A (n, n), x (4, *shape) and sigma in float64."""
    n = torch.Size(shape).numel()
    A = torch.randn(n, n, dtype=torch.float64) / n**0.5
    return A, torch.randn(4, *shape, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)


def one_trajectory(x: Tensor, sigma: float = 0.7) -> Trajectory:
    return Trajectory(x=x, seeds=SampleSeeds(0, range(len(x))), sigma=sigma)


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 5, 12), (3, 1, 6)], ids=str)
@pytest.mark.parametrize(("sigma", "radius"), [(0.3, 1), (1.5, 3), (9.0, 15)])
def test_blur_is_its_matrix(shape: tuple[int, ...], sigma: float, radius: int) -> None:
    x = torch.randn(2, *shape, dtype=torch.float64)
    expected = (x.flatten(1) @ blur_matrix(shape, sigma, radius).T).reshape(x.shape)
    torch.testing.assert_close(gaussian_blur(x, sigma=sigma, radius=radius), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("weight", [-0.5, 0.0, 1.5, 4.0])
def test_blur_guidance_of_a_linear_denoiser_in_closed_form(weight: float) -> None:
    """D = A x, D~ = B A x and D(x~) = A (x + (B - 1) A x)."""
    A, x, sigma = problem()
    model, A_sigma = Linear(A, SHAPE), A / 1.7
    B, one = blur_matrix(SHAPE, 2.0, 3), torch.eye(len(A), dtype=torch.float64)
    G = A_sigma + (weight - 1) * (B @ A_sigma - A_sigma @ (one + (B - one) @ A_sigma))
    guidance = SelfAttentionGuidance(weight, mask=FullMask(), blur=2 / 8, reach=3 / 8, positive=model)
    expected = (x.flatten(1) @ G.T).reshape(x.shape)
    torch.testing.assert_close(guidance(x, sigma), expected, rtol=1e-11, atol=1e-11)


def test_a_mask_blurs_only_its_part() -> None:
    A, x, sigma = problem()
    model = Curved(A, SHAPE)
    D = model(x, sigma)
    blurred = (D.flatten(1) @ blur_matrix(SHAPE, 2.0, 3).T).reshape(x.shape)
    D_tilde = torch.cat([blurred[..., :6], D[..., 6:]], dim=-1)
    expected = D + 0.8 * (D_tilde - model(x + D_tilde - D, sigma))
    guidance = SelfAttentionGuidance(1.8, mask=LeftHalf(), blur=2 / 8, reach=3 / 8, positive=model)
    torch.testing.assert_close(guidance(x, sigma), expected, rtol=1e-11, atol=1e-11)


def test_it_is_the_formula_of_the_paper_in_its_own_variables() -> None:
    """x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps; x_0 blurred, re-noised with the predicted eps, then extrapolation."""
    A, x, sigma = problem()
    model, s = Curved(A, SHAPE), 0.6
    abar = 1 / (1 + sigma**2)

    def eps(x_t: Tensor) -> Tensor:
        at = x_t / abar.sqrt()
        return (at - model(at, sigma)) / sigma

    x_t = abar.sqrt() * x
    e = eps(x_t)
    x_0 = (x_t - (1 - abar).sqrt() * e) / abar.sqrt()
    blurred = (x_0.flatten(1) @ blur_matrix(SHAPE, 2.0, 3).T).reshape(x.shape)
    blurred = torch.cat([blurred[..., :6], x_0[..., 6:]], dim=-1)
    e_blurred = eps(abar.sqrt() * blurred + (1 - abar).sqrt() * e)
    e_guided = e_blurred + (1 + s) * (e - e_blurred)
    guided_x_0 = (x_t - (1 - abar).sqrt() * e_guided) / abar.sqrt()
    guidance = SelfAttentionGuidance(1 + s, mask=LeftHalf(), blur=2 / 8, reach=3 / 8, positive=model)
    torch.testing.assert_close(guidance(x, sigma), guided_x_0, rtol=1e-11, atol=1e-11)


def test_sizes_of_blur_and_kernel_are_fractions_of_the_shorter_side() -> None:
    """At 256 pixels the paper's 31 x 31 kernel with a standard deviation of 9."""
    shape = (1, 256, 260)
    model = Linear(torch.empty(0), shape)
    model.forward = lambda x, sigma, condition=None: torch.zeros_like(x) + image  # type: ignore[method-assign]
    image = torch.randn(1, *shape, dtype=torch.float64)
    sigma = torch.tensor(0.5, dtype=torch.float64)
    guided = SelfAttentionGuidance(2.0, mask=FullMask(), positive=model)(torch.zeros_like(image), sigma)
    # D does not depend on x: D + (D~ - D) = D~
    torch.testing.assert_close(guided, gaussian_blur(image, sigma=9.0, radius=15))
