"""Masks of self-attention guidance against their definitions, random ones by sample, and saliency of a transformer."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import timm
import torch
from timm.data import resolve_data_config
from torch import Tensor
from torch.nn import functional as F

from lightning_guide.denoiser import Trajectory
from lightning_guide.distributions.gaussian_mixture import gaussian
from lightning_guide.guidance.negatives import (
    FullMask,
    HighFrequency,
    Mask,
    RandomPixels,
    RandomSquare,
    SaliencyMask,
    SelfAttentionGuidance,
)
from lightning_guide.networks import DiffusionTransformer
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.seeds import SampleSeeds

MODEL = gaussian(torch.zeros(2), torch.eye(2))  # most masks do not read the model


def masks(mask: Mask, clean: Tensor, *, seed: int = 0, indices: list[int] | None = None, calls: int = 1) -> Tensor:
    """The mask of the last of `calls` evaluations of one trajectory."""
    seeds = SampleSeeds(seed, indices if indices is not None else range(len(clean)))
    model, at = mask.start_mask(MODEL, Trajectory(x=clean, seeds=seeds, sigma=1.0))
    assert model is MODEL
    return [at(clean) for _ in range(calls)][-1]


def test_full_mask() -> None:
    assert torch.equal(masks(FullMask(), torch.zeros(3, 2, 4, 6)), torch.ones(1, 1, 4, 6))


# High frequencies


def test_high_frequencies_are_where_the_stripes_are() -> None:
    """Left half smooth, right half a checkerboard: the mask is the right half, except for ringing at the seam."""
    i, j = torch.arange(16.0)[:, None], torch.arange(24.0)[None]
    image = torch.where(j < 12, torch.cos(2 * math.pi * i / 16), (-1.0) ** (i + j)).expand(2, 3, 16, 24)
    M = masks(HighFrequency(), image)
    assert M.shape == (2, 1, 16, 24) and set(M.unique().tolist()) == {0, 1}
    assert bool((M[..., 14:22] == 1).all()) and bool((M[..., 2:10] == 0).all())


def test_high_pass_is_its_sum_over_frequencies() -> None:
    """Against the discrete Fourier transform written out, with frequencies in units of Nyquist's."""
    x = torch.randn(1, 2, 6, 5, dtype=torch.float64)
    high = torch.zeros(2, 6, 5, dtype=torch.complex128)
    i, j = torch.arange(6.0, dtype=torch.float64)[:, None], torch.arange(5.0, dtype=torch.float64)[None]
    for a in range(-3, 3):
        for b in range(-2, 3):
            if math.hypot(2 * a / 6, 2 * b / 5) > 0.45:
                wave = torch.exp(2j * math.pi * (a * i / 6 + b * j / 5))
                high += wave * (x[0] * wave.conj()).mean((1, 2))[:, None, None]
    assert high.imag.abs().max() < 1e-12
    strength = high.real.abs().sum(0)
    expected = (strength > 1.2 * strength.mean()).double()
    assert torch.equal(masks(HighFrequency(cutoff=0.45, psi=1.2), x)[0, 0], expected)
    assert 0 < expected.mean() < 1


def test_a_flat_image_has_no_high_frequencies() -> None:
    assert not masks(HighFrequency(), torch.zeros(2, 1, 8, 8)).any()


# Random masks


@pytest.mark.parametrize("area", [0.0, 0.2, 0.5, 1.0])
def test_random_pixels_have_the_given_area(area: float) -> None:
    M = masks(RandomPixels(area), torch.zeros(8, 3, 40, 50))
    assert set(M.unique().tolist()) <= {0, 1} and M.shape == (8, 1, 40, 50)
    deviation = math.sqrt(area * (1 - area) / M.numel())
    assert abs(float(M.mean()) - area) <= 5 * deviation
    assert (M[..., :-1] * M[..., 1:]).mean() == pytest.approx(area**2, abs=0.02)  # neighbors are independent


@pytest.mark.parametrize(
    ("size", "area", "height", "width"),
    [
        ((16, 16), 0.25, 8, 8),
        ((8, 18), 0.25, 6, 6),
        ((16, 16), 1.0, 16, 16),
        ((4, 32), 0.5, 4, 16),
        ((32, 4), 0.5, 16, 4),
    ],
    ids=str,
)
def test_random_square(size: tuple[int, int], area: float, height: int, width: int) -> None:
    M = masks(RandomSquare(area), torch.zeros(64, 1, *size))
    rows, columns = M.amax((1, 3)), M.amax((1, 2))
    assert torch.equal(M[:, 0], rows[:, :, None] * columns[:, None, :])
    for line, length in ((rows, height), (columns, width)):
        assert bool((line.sum(1) == length).all())
        assert bool((line.diff(dim=1).abs().sum(1) <= 2).all())  # in one piece
        first = line.argmax(1)
        assert int(first.min()) == 0 and int(first.max()) == line.shape[1] - length
        last = line.shape[1] - length
        assert set(first.tolist()) == set(range(last + 1))


def test_a_square_of_no_area_is_empty() -> None:
    assert not masks(RandomSquare(0.0), torch.zeros(8, 1, 8, 8)).any()


@pytest.mark.parametrize("mask", [RandomPixels(0.3), RandomSquare(0.3)], ids=lambda mask: type(mask).__name__)
def test_random_masks_depend_on_seed_sample_and_call_alone(mask: Mask) -> None:
    clean = torch.zeros(6, 3, 12, 12)
    M = masks(mask, clean)
    assert torch.equal(masks(mask, clean[:2], indices=[4, 1]), M[[4, 1]])
    torch.rand(3)
    assert torch.equal(masks(mask, clean), M)
    for other in (masks(mask, clean, seed=1), masks(mask, clean, calls=2), M.roll(1, 0)):
        assert not torch.equal(other, M)


def test_settings_out_of_range_are_refused() -> None:
    for kind in (RandomPixels, RandomSquare):
        with pytest.raises(ValueError, match=f"{kind.__name__} needs an area between 0 and 1, got 1.5"):
            kind(1.5)
    with pytest.raises(ValueError, match=r"cutoff in \[0, 1\), as a fraction of Nyquist's, got 1"):
        HighFrequency(cutoff=1)


# Saliency of a vision transformer

NAME = "test_vit.r160_in1k"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A local file with random weights of a small vision transformer."""
    torch.manual_seed(1)
    model = timm.create_model(NAME)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    path = tmp_path_factory.mktemp("vit") / "vit.pth"
    torch.save(model.state_dict(), path)
    return str(path)


@pytest.mark.parametrize("channels", [1, 3])
def test_saliency_is_the_attention_of_the_class_token(weights: str, channels: int) -> None:
    clean = torch.randn(2, channels, 20, 30).double()
    mask = SaliencyMask(NAME, weights=weights, psi=1.05)
    model = timm.create_model(NAME)
    model.load_state_dict(torch.load(weights, weights_only=True))
    model.eval()
    config = resolve_data_config(model=model)
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
    image = (clean.float().clamp(-1, 1) / 2 + 0.5).repeat(1, 3 // channels, 1, 1)
    image = F.interpolate(image, (160, 160), mode="bicubic", align_corners=False, antialias=True)
    with torch.no_grad():
        tokens = model._pos_embed(model.patch_embed((image - mean) / std))
        for block in model.blocks[:-1]:
            tokens = block(tokens)
        last = model.blocks[-1]
        qkv = last.attn.qkv(last.norm1(tokens))
    C, heads = tokens.shape[-1], last.attn.num_heads
    d, total = C // heads, torch.zeros(2, 100)
    for head in range(heads):
        q, k = (qkv[..., part * C + head * d : part * C + (head + 1) * d] for part in (0, 1))
        total += (q[:, :1] @ k.mT / math.sqrt(d)).softmax(-1)[:, 0, 1:] / heads
    torch.testing.assert_close(mask.saliency(clean).flatten(1), total)
    M = masks_of(mask, clean, channels)
    assert M.shape == (2, 1, 20, 30) and M.dtype == torch.float64
    expected = (total > 1.05 * total.mean(1, keepdim=True)).double().reshape(2, 1, 10, 10)
    assert torch.equal(M, expected.repeat_interleave(2, 2).repeat_interleave(3, 3))
    assert 0 < M.mean() < 1


def masks_of(mask: Mask, clean: Tensor, channels: int) -> Tensor:
    network = DiffusionTransformer((channels, 20, 30), channels=8, depth=1, heads=1)
    seeds = SampleSeeds(0, range(len(clean)))
    return mask.start_mask(Preconditioned(network), Trajectory(x=clean, seeds=seeds, sigma=1.0))[1](clean)


def test_saliency_guides_without_a_further_evaluation(weights: str) -> None:
    model = Preconditioned(DiffusionTransformer((3, 8, 8), channels=8, depth=1, heads=1))
    x = torch.randn(2, 3, 8, 8)
    trajectory = Trajectory(x=x, seeds=SampleSeeds(0, range(2)), sigma=0.7)
    guidance = SelfAttentionGuidance(2.0, mask=SaliencyMask(NAME, weights=weights), blur=0.3, positive=model)
    guided = guidance.start(trajectory)(x, torch.tensor(0.7), None).clean
    assert trajectory.evaluations == 2 and not torch.equal(guided, model(x, torch.tensor(0.7)))


def test_unavailable_saliency_models_are_refused(weights: str, tmp_path: Path) -> None:
    clean = torch.zeros(1, 3, 8, 8)
    for name, file, message in [
        ("vit_of_nowhere", weights, "timm has no model 'vit_of_nowhere'"),
        (NAME, str(tmp_path / "none.pth"), "there is no file"),
        ("test_resnet.r160_in1k", weights, "weights of test_resnet.r160_in1k cannot be loaded"),
    ]:
        with pytest.raises(ValueError, match=message):
            SaliencyMask(name, weights=file).saliency(clean)
    resnet = tmp_path / "resnet.pth"
    torch.save(timm.create_model("test_resnet.r160_in1k").state_dict(), resnet)
    with pytest.raises(
        ValueError, match="needs a vision transformer with a class token; test_resnet.r160_in1k is not one"
    ):
        SaliencyMask("test_resnet.r160_in1k", weights=str(resnet)).saliency(clean)
    latents = Preconditioned(DiffusionTransformer((4, 8, 8), channels=8, depth=1, heads=1))
    with pytest.raises(ValueError, match="images of 1 or 3 channels, got 4"):
        SelfAttentionGuidance(mask=SaliencyMask(NAME), positive=latents)(torch.zeros(1, 4, 8, 8), torch.tensor(1.0))
