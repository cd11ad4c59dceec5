"""FDG against a Laplacian pyramid made of matrices, band by band; bands that are off; sizes that are too small."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_guide.guidance.combinations import FrequencyDecoupled, Plain
from lightning_guide.noise import KarrasGrid
from lightning_guide.samplers import Heun, Sampler
from tests.branches import SAMPLERS, Blob, blobs, combined, guided, start, walk

double = torch.float64


def blur_matrix(size: int) -> Tensor:
    """Row i holds the weights of the binomial blur at i, mirrored about the first and the last sample."""
    matrix = torch.zeros(size, size, dtype=double)
    for i in range(size):
        for offset, tap in zip(range(-2, 3), (1, 4, 6, 4, 1), strict=True):
            j = abs(i + offset)
            j = 2 * (size - 1) - j if j >= size else j
            matrix[i, j] += tap / 16
    return matrix


def resize_matrix(size: int, new: int) -> Tensor:
    """Linear interpolation between the centers of `size` equal cells, at the centers of `new` ones."""
    matrix = torch.zeros(new, size, dtype=double)
    for i in range(new):
        place = max((i + 0.5) * size / new - 0.5, 0.0)
        below = min(int(place), size - 1)
        above = min(below + 1, size - 1)
        matrix[i, below] += 1 - (place - below)
        matrix[i, above] += place - below
    return matrix


def bands(image: Tensor, count: int) -> list[Tensor]:
    """The bands of `image` (B, C, H, W), lowest first, all at its full size."""

    def along(rows: Tensor, columns: Tensor, image: Tensor) -> Tensor:
        return rows @ image @ columns.T

    sizes, images = [tuple(image.shape[-2:])], [image]
    for _ in range(count - 1):
        h, w = sizes[-1]
        half = (math.ceil(h / 2), math.ceil(w / 2))
        rows, columns = (resize_matrix(n, m) @ blur_matrix(n) for n, m in zip((h, w), half, strict=True))
        images.append(along(rows, columns, images[-1]))
        sizes.append(half)

    def enlarged(image: Tensor, level: int) -> Tensor:
        """From the size of `level` to that of the image."""
        for k in range(level, 0, -1):
            rows, columns = (blur_matrix(n) @ resize_matrix(m, n) for n, m in zip(sizes[k - 1], sizes[k], strict=True))
            image = along(rows, columns, image)
        return image

    found = [enlarged(images[-1], count - 1)]
    for k in range(count - 2, -1, -1):
        found.append(enlarged(images[k], k) - enlarged(images[k + 1], k + 1))
    return found


SIZES = [(8, 8), (3, 6), (7, 10), (9, 17)]
FACTORS = [[0.5, 1.0], [0.0, 2.0], [1.0, 0.0], [0.3, -0.5, 2.0], [0.0, 0.0, 1.0, 0.7], [0.4]]


@pytest.mark.parametrize(
    ("size", "factors"), [(s, f) for s in SIZES for f in FACTORS if min(s) > 2 ** (len(f) - 1)], ids=str
)
def test_formula(size: tuple[int, int], factors: list[float]) -> None:
    x, pos, first, second = torch.randn(4, 2, 3, *size, dtype=double)
    expected = pos.clone()
    for weight, neg in ((3.0, first), (0.4, second)):
        pieces = bands(pos - neg, len(factors))
        torch.testing.assert_close(torch.stack(pieces).sum(0), pos - neg)
        for factor, piece in zip(factors, pieces, strict=True):
            expected += (weight - 1) * factor * piece
    out = combined(FrequencyDecoupled(factors), x, 0.7, pos, (3.0, first), (0.4, second))
    torch.testing.assert_close(out, expected)


def test_weights_of_the_paper() -> None:
    """w_low = 5 and w_high = 10: each band of the estimate has the line of its own weight."""
    x, pos, neg = torch.randn(3, 2, 3, 8, 8, dtype=double)
    out = combined(FrequencyDecoupled([4 / 9, 1.0]), x, 0.7, pos, (10.0, neg))
    low, high = (n + w * (p - n) for w, p, n in zip((5, 10), bands(pos, 2), bands(neg, 2), strict=True))
    torch.testing.assert_close(out, low + high)


@pytest.mark.parametrize("size", [(8, 8), (7, 12), (11, 5)], ids=str)
def test_a_constant_is_low_and_a_chessboard_is_high(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size, dtype=double)
    constant = torch.ones_like(x)
    places = torch.arange(size[0])[:, None] + torch.arange(size[1])
    chessboard = ((-1.0) ** places).to(double).expand_as(x)
    for neg, kept, lost in ((constant, [1.0, 0.0], [0.0, 1.0]), (chessboard, [0.0, 1.0], [1.0, 0.0])):
        pos = torch.zeros_like(x)
        torch.testing.assert_close(combined(FrequencyDecoupled(kept), x, 0.7, pos, (3.0, neg)), -2 * neg)
        torch.testing.assert_close(combined(FrequencyDecoupled(lost), x, 0.7, pos, (3.0, neg)), pos)


def test_a_mirrored_image_is_guided_alike() -> None:
    for size in ((8, 8), (7, 10)):
        x, pos, neg = torch.randn(3, 2, 3, *size, dtype=double)
        rule = FrequencyDecoupled([0.2, 1.0])
        out = combined(rule, x, 0.7, pos, (3.0, neg))
        for axis in (-1, -2):
            mirrored = combined(rule, x, 0.7, pos.flip(axis), (3.0, neg.flip(axis)))
            torch.testing.assert_close(mirrored, out.flip(axis))


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("factors", [[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]], ids=str)
def test_a_band_switched_off_in_every_sampler(factors: list[float], sampler: Sampler) -> None:
    """A widely used package fails with an error of shapes or of an unbound name here."""
    models, x = blobs(3, 7, 6), start(3, 7, 6)
    off = walk(sampler, guided(models, [2.0, 3.0], FrequencyDecoupled(factors)), x).x
    alone, plain = (walk(sampler, model, x).x for model in (models[0], guided(models, [2.0, 3.0], Plain())))
    assert bool(off.isfinite().all())
    if factors == [0.0, 0.0]:
        torch.testing.assert_close(off, alone)
    else:
        assert (off - alone).abs().max() > 0.01 and (off - plain).abs().max() > 0.01


def test_samples_of_gaussians_with_a_weight_for_each_band() -> None:
    """D = a x + (w - 1) (a - b) P x for isotropic Gaussians and the matrix P of the reweighted bands: the flow is
    a matrix exponential, exp(-(w - 1) l P) sqrt(p / (p + S^2)), l = ln[(n / p) (p + S^2) / (n + S^2)] / 2.
    """
    p, n, w, top, factors = 0.5, 0.8, 3.0, 20.0, [0.2, 1.5]
    basis = torch.eye(30, dtype=double).reshape(30, 1, 5, 6)
    pieces = [piece.reshape(30, 30).T for piece in bands(basis, 2)]
    P = factors[0] * pieces[0] + factors[1] * pieces[1]
    stretch = math.log(n / p * (p + top**2) / (n + top**2)) / 2
    flow = math.sqrt(p / (p + top**2)) * torch.matrix_exp(-(w - 1) * stretch * P)
    x = top * torch.randn(30, 1, 5, 6, dtype=double)
    models = [Blob((1, 5, 6), 0.0, p), Blob((1, 5, 6), 0.0, n)]
    grid = KarrasGrid(100, sigma_max=top, sigma_min=0.001)
    end = walk(Heun(grid), guided(models, [w], FrequencyDecoupled(factors)), x).x
    torch.testing.assert_close(end.flatten(1), x.flatten(1) @ flow.T, rtol=0, atol=2e-3)
    noise = top * torch.eye(30, dtype=double).reshape(30, 1, 5, 6)
    M = walk(Heun(grid), guided(models, [w], FrequencyDecoupled(factors)), noise).x.flatten(1).T
    torch.testing.assert_close(M @ M.T, top**2 * flow @ flow.T, rtol=0, atol=2e-3)  # covariance of the samples


@pytest.mark.parametrize(
    ("shape", "count"), [((2,), 2), ((5, 8), 2), ((3, 2, 8), 2), ((3, 8, 4), 3), ((3, 4, 8, 8), 2)], ids=str
)
def test_data_without_such_bands_are_refused(shape: tuple[int, ...], count: int) -> None:
    x, pos, neg = torch.randn(3, 2, *shape)
    with pytest.raises(
        ValueError, match=rf"{count} bands needs images \(C, H, W\) with sides of {2 ** (count - 1) + 1}"
    ):
        combined(FrequencyDecoupled([1.0] * count), x, 0.7, pos, (2.0, neg))
    one = combined(FrequencyDecoupled([0.5]), x, 0.7, pos, (3.0, neg))
    torch.testing.assert_close(one, pos + (pos - neg))


@pytest.mark.parametrize("factors", [[], [math.inf, 1.0]])
def test_factors_are_a_list_of_finite_numbers(factors: list[float]) -> None:
    with pytest.raises(ValueError, match="FrequencyDecoupled needs a list of finite factors"):
        FrequencyDecoupled(factors)
