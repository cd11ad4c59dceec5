"""Geometric augmentation: transformed images, augmentation vectors, and the augmented loss."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser
from lightning_guide.networks import DDPMpp, EDM2UNet
from lightning_guide.noise import LogNormal
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.training.augmentation import AugmentedLoss, GeometricAugmentation
from lightning_guide.training.losses import EDMLoss


def smooth(size: int = 24) -> Tensor:
    """Return an image (1, 2, size, size) in double precision, smooth enough to be resampled, far from symmetric."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size, dtype=torch.float64)] * 2, indexing="ij")
    return torch.stack([torch.sin(2 * x + y), torch.exp(-((x - 0.3) ** 2 + (y + 0.2) ** 2) * 3)])[None]


def parameters(**values: float) -> Tensor:
    return torch.tensor([[values.get(f"a{i}", 0.0) for i in range(8)]], dtype=torch.float64)


def test_nothing_happens_at_probability_zero(generator: torch.Generator) -> None:
    x = torch.randn(50, 3, 8, 8)
    same, received = GeometricAugmentation(0.0, mirror=False)(x, generator)
    assert torch.equal(same, x) and not received.any() and received.shape == (50, 9)
    flipped, received = GeometricAugmentation(0.0)(x, generator)
    a0 = received[:, 0].bool()
    assert not received[:, 1:].any() and 10 < int(a0.sum()) < 40
    assert torch.equal(flipped[~a0], x[~a0]) and torch.equal(flipped[a0], x[a0].flip(3))


def test_draws_have_the_shares_and_spreads_of_the_paper(generator: torch.Generator) -> None:
    n, p = 40_000, 0.12
    a = GeometricAugmentation(p).draw(n, generator)
    shares = (a != 0).float().mean(0)
    expected = torch.tensor([0.5, p / 2, p, p, p, p, p, p])
    assert ((shares - expected).abs() < 5 * (expected * (1 - expected) / n).sqrt()).all()
    assert torch.equal(a[:, 4] != 0, a[:, 5] != 0) and torch.equal(a[:, 6] != 0, a[:, 7] != 0)
    both = ((a[:, 2] != 0) & (a[:, 3] != 0)).float().mean()  # independent of one another
    assert float(both) == pytest.approx(p * p, abs=5 * (p * p / n) ** 0.5)
    for i in (2, 5, 6, 7):
        drawn = a[a[:, i] != 0, i]
        assert float(drawn.mean()) == pytest.approx(0, abs=0.08) and float(drawn.std()) == pytest.approx(1, abs=0.06)
    for i in (3, 4):
        drawn = a[a[:, i] != 0, i]
        assert drawn.abs().max() <= math.pi and float(drawn.std()) == pytest.approx(math.pi / 3**0.5, abs=0.07)
    again = GeometricAugmentation(p).draw(n, torch.Generator().manual_seed(generator.initial_seed()))
    assert torch.equal(a, again)


def test_augmentation_vector() -> None:
    a = torch.tensor([[1.0, 0.0, 0.7, 0.3, 1.1, -0.5, 0.2, -2.0]])
    expected = [1, 0, 0.7, math.cos(0.3) - 1, math.sin(0.3), -0.5 * math.cos(1.1), -0.5 * math.sin(1.1), 0.2, -2]
    assert GeometricAugmentation().vector(a)[0].tolist() == pytest.approx(expected)
    assert not GeometricAugmentation().vector(torch.zeros(1, 8)).any()


def test_each_transformation_moves_pixels_as_documented() -> None:
    move, x = GeometricAugmentation().transform, smooth()
    inner = (..., slice(6, 18), slice(6, 18))
    torch.testing.assert_close(move(x, parameters(a0=1, a1=1)), x.flip(2).flip(3))
    # a quarter turn takes the x axis to the y axis, which points down: clockwise on the screen
    torch.testing.assert_close(move(x, parameters(a3=math.pi / 2)), x.rot90(-1, (2, 3)), atol=1e-5, rtol=0)
    # a shift by a third of 24 / 8 = 3 pixels is one pixel to the right, and with a7 two downwards
    shifted = move(x, parameters(a6=1 / 3, a7=2 / 3))
    torch.testing.assert_close(shifted[..., 2:, 1:], x[..., :-2, :-1], atol=1e-5, rtol=0)
    torch.testing.assert_close(shifted[..., 2:, 0], x[..., :-2, 0], atol=1e-5, rtol=0)  # the border is a mirror
    # zoom by 2^(0.2 a2): the value at p is that of the image at p / zoom; the error of torch's cubic kernel (a = -0.75)
    # between pixels is some percent of a pixel, 0.17 here, while the error without zoom would be 0.3
    y, u = torch.meshgrid(*[torch.linspace(-1, 1, 24, dtype=torch.float64)] * 2, indexing="ij")
    zoomed = move(x, parameters(a2=2.0))
    by = 2**0.4
    torch.testing.assert_close(zoomed[:, 0][inner], torch.sin(2 * u / by + y / by)[None][inner], atol=0.02, rtol=0)
    # stretch by s along the direction a4, by 1 / s across
    angle, s = 0.4, 2 ** (0.2 * 1.5)
    along, across = math.cos(angle) * u + math.sin(angle) * y, -math.sin(angle) * u + math.cos(angle) * y
    v = math.cos(angle) * along / s - math.sin(angle) * across * s
    w = math.sin(angle) * along / s + math.cos(angle) * across * s
    stretched = move(x, parameters(a4=angle, a5=1.5))
    torch.testing.assert_close(stretched[:, 0][inner], torch.sin(2 * v + w)[None][inner], atol=0.02, rtol=0)
    # shifts are relative to the sides of an image that is not square
    wide = torch.randn(1, 1, 8, 16, dtype=torch.float64)
    torch.testing.assert_close(move(wide, parameters(a6=0.5))[..., 1:], wide[..., :-1], atol=1e-5, rtol=0)


class Recorder(Denoiser):
    """Denoiser D = 0 that records its inputs."""

    data_shape, num_classes, sigma_data = (1, 8, 8), 0, 0.5

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor | None]] = []

    def forward(
        self, x: Tensor, sigma: Tensor, condition: Tensor | None = None, *, augmentation: Tensor | None = None
    ) -> Tensor:
        self.seen.append((x, augmentation))
        return torch.zeros_like(x)


def test_loss_augments_and_passes_the_vector(generator: torch.Generator) -> None:
    augmentation, denoiser = GeometricAugmentation(0.5), Recorder()
    loss = AugmentedLoss(EDMLoss(LogNormal(-12.0, 0.01), uncertainty=False), augmentation)  # hardly any noise
    clean = torch.randn(6, 1, 8, 8)
    terms = loss(denoiser, clean, None, generator)
    x, received = denoiser.seen[0]
    expected, vector = augmentation(clean, torch.Generator().manual_seed(generator.initial_seed()))
    assert received is not None and torch.equal(received, vector)
    torch.testing.assert_close(x, expected, atol=1e-4, rtol=0)
    weight = (terms.sigma**2 + 0.25) / (terms.sigma * 0.5) ** 2
    torch.testing.assert_close(terms.error, weight * expected.square().flatten(1).mean(1))
    loss.at(denoiser, clean, None, torch.ones(6), torch.zeros_like(clean))
    assert denoiser.seen[1][1] is None and torch.equal(denoiser.seen[1][0], clean)  # the held-out loss


def test_default_vector_is_zero() -> None:
    network = DDPMpp((1, 8, 8), num_classes=3, augmentation_channels=9, model_channels=8, channel_mult=[1, 1],
                     num_blocks=1, attention_resolutions=[4], dropout=0.0)  # fmt: skip
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.2)
    model, x, sigma = Preconditioned(network).eval(), torch.randn(2, 1, 8, 8), torch.tensor([0.5, 2.0])
    plain = model(x, sigma, torch.tensor([0, 2]))
    assert torch.equal(model(x, sigma, torch.tensor([0, 2]), augmentation=torch.zeros(2, 9)), plain)
    assert (model(x, sigma, torch.tensor([0, 2]), augmentation=torch.ones(2, 9)) - plain).abs().max() > 1e-3
    for other in (DDPMpp((1, 8, 8), model_channels=8), EDM2UNet((1, 8, 8), model_channels=8, attention_resolutions=[])):
        with pytest.raises(ValueError, match="has no input for augmentation parameters"):
            Preconditioned(other)(x, sigma, augmentation=torch.zeros(2, 9))
    with pytest.raises(ValueError, match="needs a probability between 0 and 1, got 1.5"):
        GeometricAugmentation(1.5)
    with pytest.raises(ValueError, match="DDPMpp got 4 augmentation parameters; expected 9"):
        model(x, sigma, augmentation=torch.zeros(2, 4))


def test_other_data_is_rejected(generator: torch.Generator) -> None:
    with pytest.raises(ValueError, match=r"for images \(B, C, H, W\), got data of shape \(5, 2\)"):
        GeometricAugmentation()(torch.zeros(5, 2), generator)
