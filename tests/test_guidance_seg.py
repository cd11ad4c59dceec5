"""Smoothed energy guidance: the kernel rule, blurred queries are blurred logits, both ends of sigma."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_guide.guidance.negatives import BlurredQueries, SmoothedEnergyGuidance
from lightning_guide.guidance.negatives.seg import blur_matrix, blur_queries, kernel_size
from lightning_guide.guidance.perturbation import Perturbed
from lightning_guide.networks import CosineAttention
from lightning_guide.noise import KarrasGrid
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.samplers import Euler, Heun
from lightning_guide.seeds import SampleSeeds
from tests.small_networks import LABELS, NETWORKS, SIGMA, noisy_images, trajectory, transformer

GRIDS = [(4, 4), (5, 5), (2, 8), (7, 3), (6, 9), (1, 6), (2, 2)]
SIGMAS = [0.2, 0.5, 1.0, 2.0, 10.0]


def taps(size: int, sigma: float) -> Tensor:
    """The published rule, written out."""
    count = math.ceil(6 * sigma) + 1 - math.ceil(6 * sigma) % 2
    count = min(count, size - (size % 2 - 1))
    offsets = torch.arange(count, dtype=torch.float64) - (count - 1) / 2
    values = torch.exp(-0.5 * (offsets / sigma) ** 2)
    return values / values.sum()


def image_blur(images: Tensor, sigma: float) -> Tensor:
    """Separable convolution of `images` (B, C, H, W) with reflected borders."""
    H, W = images.shape[-2:]
    down, across = taps(H, sigma), taps(W, sigma)
    kernel = torch.outer(down, across).expand(images.shape[1], 1, -1, -1)
    padding = (len(across) // 2,) * 2 + (len(down) // 2,) * 2
    padded = images
    for axis in (0, 1):  # one axis at a time, since a side of one cell cannot be reflected
        pad = padding[2 * axis : 2 * axis + 2]
        if pad[0]:
            padded = F.pad(padded, pad + (0, 0) if axis == 0 else (0, 0) + pad, mode="reflect")
    return F.conv2d(padded, kernel, groups=images.shape[1])


def qkv(grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    q, k, v = torch.randn(3, 2, 2, grid[0] * grid[1], 5, dtype=torch.float64, generator=generator)
    return q, k, v


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_queries_are_blurred_as_images(grid: tuple[int, int], sigma: float) -> None:
    q, _, _ = qkv(grid)
    expected = image_blur(q.mT.reshape(2, 10, *grid), sigma).reshape(2, 2, 5, -1).mT
    close(blur_queries(q, grid, sigma), expected)


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_blurring_queries_is_blurring_logits_over_the_queries(grid: tuple[int, int], sigma: float) -> None:
    q, k, _ = qkv(grid)
    N = grid[0] * grid[1]
    logits = (q @ k.mT).mT.reshape(2, 2 * N, *grid)  # for each head and key an image of the queries
    expected = image_blur(logits, sigma).reshape(2, 2, N, N).mT
    close(blur_queries(q, grid, sigma) @ k.mT, expected)


def test_keys_and_values_are_unchanged() -> None:
    q, k, v = qkv((4, 4))
    core = BlurredQueries(1.0).replace(CosineAttention(), trajectory())
    expected = (blur_queries(q, (4, 4), 1.0) @ k.mT / math.sqrt(5)).softmax(-1) @ v
    close(core(q, k, v, (4, 4)), expected)


@pytest.mark.parametrize("sigma", [0.0, 1e-6, 0.1, 1 / 6])
def test_a_small_sigma_is_the_module_itself(sigma: float) -> None:
    core = CosineAttention()
    assert BlurredQueries(sigma).replace(core, trajectory()) is core
    assert torch.equal(blur_matrix(5, sigma, torch.ones(())), torch.eye(5))
    assert BlurredQueries(1 / 6 + 1e-6).replace(core, trajectory()) is not core


def test_infinity_is_the_mean_query_for_all() -> None:
    q, k, v = qkv((3, 4))
    mean = q.mean(-2, keepdim=True).expand_as(q)
    close(blur_queries(q, (3, 4), math.inf), mean)
    out = BlurredQueries(math.inf).replace(CosineAttention(), trajectory())(q, k, v, (3, 4))
    close(out, out[..., :1, :].expand_as(out))
    close(out, CosineAttention()(mean, k, v, None))


def test_finite_sigma_and_infinity_are_not_swapped() -> None:
    """Defect 5 of the widely used library: sigma = 1 gave the mean, infinity the kernel."""
    q, _, _ = qkv((6, 6))
    mean = q.mean(-2, keepdim=True)
    finite, infinite = (blur_queries(q, (6, 6), sigma) for sigma in (1.0, math.inf))
    assert (finite - mean).abs().max() > 0.3 and (infinite - mean).abs().max() < 1e-12
    middle = F.one_hot(torch.tensor(40), 81).double()[None, None, :, None]
    spread = blur_queries(middle, (9, 9), 1.0).flatten()
    assert spread.argmax() == 40 and spread[40] == pytest.approx(1 / (2 * math.pi), rel=1e-2)
    assert spread[0] == spread[80] == 0 < spread[10]  # 7 taps reach over three cells, not four


@pytest.mark.parametrize("size", range(1, 12))
def test_kernels_are_odd_and_fit_their_reflection(size: int) -> None:
    for sigma in (0.0, 0.17, 0.5, 1.0, 3.0, 1e9):
        count = kernel_size(sigma, size)
        assert count % 2 == 1 and count // 2 <= max(size - 1, 0)
        matrix = blur_matrix(size, sigma, torch.ones((), dtype=torch.float64))
        close(matrix.sum(1), torch.ones(size, dtype=torch.float64))
        assert matrix.dtype == torch.float64 and (matrix >= 0).all()


def test_it_needs_a_grid_of_tokens() -> None:
    sequence = transformer(data_shape=(2, 12))
    guided = SmoothedEnergyGuidance(2.0, positive=sequence)
    with pytest.raises(ValueError, match="SEG needs a 2D token grid; this network has no grid"):
        guided(torch.randn(2, 2, 12), SIGMA, LABELS[:2])
    q, _, _ = qkv((3, 4))
    with pytest.raises(ValueError, match="SEG needs one token for each cell of the 3x3 grid, got 12 tokens"):
        blur_queries(q, (3, 3), 1.0)
    for sigma in (-1.0, math.nan):
        with pytest.raises(ValueError, match="SEG needs sigma >= 0"):
            BlurredQueries(sigma)


@pytest.mark.parametrize("shape", [(1, 8, 16), (1, 12, 4)], ids=str)
@pytest.mark.parametrize("kind", NETWORKS)
def test_any_aspect(kind: str, shape: tuple[int, int, int]) -> None:
    model = (
        NETWORKS[kind](data_shape=shape, attention_resolutions=[])
        if kind == "unet"
        else NETWORKS[kind](data_shape=shape)
    )
    x = torch.randn(2, *shape)
    with torch.no_grad():
        plain = model(x, SIGMA, LABELS[:2])
        for sigma in (1.0, math.inf):
            guided = SmoothedEnergyGuidance(2.0, sigma=sigma, positive=model)(x, SIGMA, LABELS[:2])
            assert guided.shape == x.shape and not torch.allclose(guided, plain)


@pytest.mark.parametrize("kind", NETWORKS)
def test_it_is_applied_and_counted_in_every_step(kind: str) -> None:
    """Defect 4 of the widely used library: the branch was computed and never perturbed."""
    model = NETWORKS[kind]()
    grid = KarrasGrid(4, sigma_min=0.1, sigma_max=5.0)
    with torch.no_grad():
        for sampler, calls in ((Euler(grid), 4), (Heun(grid), 7)):
            plain, guided = (
                sampler.sample(denoiser, seeds=SampleSeeds(0, range(3)), condition=LABELS)
                for denoiser in (model, SmoothedEnergyGuidance(2.0, positive=model))
            )
            assert (plain.evaluations, guided.evaluations) == (calls, 2 * calls)
            assert (plain.x - guided.x).abs().max() > 1e-4
        negative = Perturbed([BlurredQueries()], positive=model)
        for step in range(4):
            network = negative.network(trajectory(step=step))
            assert isinstance(network, Preconditioned)
            assert not torch.allclose(network(noisy_images(), SIGMA, LABELS), model(noisy_images(), SIGMA, LABELS))
