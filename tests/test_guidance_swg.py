"""Sliding windows: closed forms on images of any aspect, identities on both networks, cost, and refused models."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser, Predict, Prediction, Trajectory, expand
from lightning_guide.distributions.gaussian_mixture import gaussian
from lightning_guide.guidance import ClassifierFreeGuidance, Guided, Interval, Unconditional
from lightning_guide.guidance.negatives import (
    MaskedSlidingWindow,
    MaskedSlidingWindowGuidance,
    SlidingWindow,
    SlidingWindowGuidance,
)
from lightning_guide.guidance.negatives.swg import windows
from lightning_guide.network import Network
from lightning_guide.networks import DiffusionTransformer, EDM2UNet
from lightning_guide.noise import KarrasGrid
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.samplers import DPMSolver2M, Heun, Sampler
from lightning_guide.seeds import SampleSeeds
from lightning_guide.utils.recipe import build

SIGMA = torch.tensor(0.7, dtype=torch.float64)


def unet(shape: tuple[int, ...] = (2, 8, 16)) -> Preconditioned:
    options = {"model_channels": 8, "channel_mult": (1, 2), "num_blocks": 1, "attention_resolutions": ()}
    return randomized(EDM2UNet(shape, num_classes=3, **options))  # type: ignore[arg-type]


def transformer(shape: tuple[int, ...] = (2, 8, 16)) -> Preconditioned:
    return randomized(DiffusionTransformer(shape, num_classes=3, channels=24, depth=2, heads=3))


def randomized(network: Network) -> Preconditioned:
    """A denoiser whose gains and zero-initialized layers have an effect."""
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.3 if isinstance(network, EDM2UNet) else 0.1)
    return Preconditioned(network.eval())


BOTH = pytest.mark.parametrize("make", [unet, transformer])


class Centered(Denoiser):
    """D(x) = (x - mean of its input) / (1 + sigma), of any size; the label is added."""

    sigma_data, num_classes = 0.5, 2

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.data_shape = shape

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        label = 0 if condition is None else condition.to(x)[:, None, None, None] + 1
        return (x - x.mean((2, 3), keepdim=True) + label) / (1 + expand(sigma, x))


def one_trajectory(x: Tensor, sigma: float = 0.7) -> Trajectory:
    return Trajectory(x=x, seeds=SampleSeeds(0, range(len(x))), sigma=sigma)


def by_pixel(
    denoise: Callable[[Tensor], Tensor], x: Tensor, sizes: tuple[int, int], starts: tuple[Sequence[int], Sequence[int]]
) -> tuple[Tensor, Tensor]:
    """The average over all windows that hold a pixel, one pixel at a time, and how many these are."""
    said = {(i, j): denoise(x[..., i : i + sizes[0], j : j + sizes[1]]) for i in starts[0] for j in starts[1]}
    out, count = torch.empty_like(x), torch.zeros(x.shape[2:])
    for row in range(x.shape[2]):
        for column in range(x.shape[3]):
            values = [
                part[..., row - i, column - j]
                for (i, j), part in said.items()
                if 0 <= row - i < sizes[0] and 0 <= column - j < sizes[1]
            ]
            out[..., row, column] = torch.stack(values).mean(0)
            count[row, column] = len(values)
    return out, count


# Windows

CASES = [  # height, width, fraction, n, (k_h, k_w), starts
    (64, 64, 5 / 8, 2, (40, 40), ([0, 24], [0, 24])),  # the paper's, in latents of 512 pixels
    (32, 32, 5 / 8, 2, (20, 20), ([0, 12], [0, 12])),
    (8, 16, 0.75, 2, (6, 12), ([0, 2], [0, 4])),
    (9, 12, 0.5, 3, (4, 6), ([0, 2, 5], [0, 3, 6])),
    (8, 8, 0.5, 2, (4, 4), ([0, 4], [0, 4])),  # no overlap
    (7, 8, 1.0, 3, (7, 8), ([0], [0])),  # all the same
]


@pytest.mark.parametrize(("height", "width", "fraction", "n", "sizes", "starts"), CASES, ids=str)
def test_windows(height, width, fraction, n, sizes, starts) -> None:  # type: ignore[no-untyped-def]
    expected = [(slice(i, i + sizes[0]), slice(j, j + sizes[1])) for i in starts[0] for j in starts[1]]
    assert windows(height, width, fraction=fraction, count=n) == expected


def test_windows_are_rounded_up_to_the_stride_of_the_network() -> None:
    expected = [(slice(i, i + 6), slice(j, j + 10)) for i in (0, 2) for j in (0, 6)]
    assert SlidingWindow(positive=unet()).places((1, 2, 8, 16)) == expected  # 5 x 10 and a stride of 2
    assert windows(8, 16, fraction=5 / 8, count=2, stride=8) == [(slice(0, 8), slice(0, 16))]


def test_windows_leave_no_gaps() -> None:
    for side in range(1, 30):
        for n in (2, 3, 4):
            for k in range(-(-side // n), side + 1):
                places = windows(side, side, fraction=k / side, count=n)
                assert {i for rows, _ in places for i in range(side)[rows]} == set(range(side))
                assert {rows.stop - rows.start for rows, _ in places} == {k}
    with pytest.raises(
        ValueError, match="2 windows of 3 pixels leave gaps on a side of 8; expected windows of 4 pixels"
    ):
        windows(8, 8, fraction=0.4, count=2)


# Closed forms


@pytest.mark.parametrize(("height", "width", "fraction", "n", "sizes", "starts"), CASES[2:], ids=str)
@pytest.mark.parametrize("weight", [0.0, 1.3, 4.0])
def test_both_forms_pixel_by_pixel(height, width, fraction, n, sizes, starts, weight) -> None:
    model, x = Centered(3, height, width), torch.randn(2, 3, height, width, dtype=torch.float64)
    D = model(x, SIGMA)
    D_swg, count = by_pixel(lambda crop: model(crop, SIGMA), x, sizes, starts)
    for kind, M in ((SlidingWindowGuidance, 1.0), (MaskedSlidingWindowGuidance, (count > 1).double())):
        expected = D + (weight - 1) * M * (D - D_swg)
        trajectory = one_trajectory(x)
        prediction = kind(weight, crop=fraction, n=n, positive=model).start(trajectory)(x, SIGMA, None)
        torch.testing.assert_close(prediction.clean, expected, rtol=1e-12, atol=1e-12)
        assert trajectory.evaluations == 1 + len(starts[0]) * len(starts[1])


@BOTH
def test_networks_receive_crops(make: Callable[[], Preconditioned]) -> None:
    model, x, labels = make(), torch.randn(2, 2, 8, 16), torch.tensor([2, 0])
    sigma = torch.tensor(0.7)
    with torch.no_grad():
        D = model(x, sigma, labels)
        D_swg, count = by_pixel(lambda crop: model(crop, sigma, labels), x, (6, 12), ([0, 2], [0, 4]))
    assert (D - D_swg).abs().max() > 0.01
    assert count.unique().tolist() == [1, 2, 4]
    for kind, M in ((SlidingWindowGuidance, 1.0), (MaskedSlidingWindowGuidance, (count > 1).float())):
        with torch.no_grad():
            guided = kind(1.4, crop=0.75, positive=model)(x, sigma, labels)
        torch.testing.assert_close(guided, D + 0.4 * M * (D - D_swg), rtol=1e-4, atol=1e-5)


def test_with_classifier_free_guidance_the_masked_form_adds_up() -> None:
    """D_c + 0.3 (D_c - D_none) + 0.3 M (D_c - D_swg), in 1 + 1 + 4 evaluations."""
    model, x, labels = Centered(3, 8, 16), torch.randn(2, 3, 8, 16, dtype=torch.float64), torch.tensor([1, 0])
    D = model(x, SIGMA, labels)
    D_swg, count = by_pixel(lambda crop: model(crop, SIGMA, labels), x, (6, 12), ([0, 2], [0, 4]))
    expected = D + 0.3 * (D - model(x, SIGMA)) + 0.3 * (count > 1).double() * (D - D_swg)
    trajectory = one_trajectory(x)
    guided = Guided([Unconditional(model), MaskedSlidingWindow(crop=0.75, positive=model)], [1.3, 1.3], positive=model)
    prediction = guided.start(trajectory)(x, SIGMA, labels)
    torch.testing.assert_close(prediction.clean, expected, rtol=1e-12, atol=1e-12)
    assert trajectory.evaluations == 6
    plain = Guided([Unconditional(model), SlidingWindow(crop=0.75, positive=model)], [1.3, 1.3], positive=model)
    expected = D + 0.3 * (D - model(x, SIGMA)) + 0.3 * (D - D_swg)
    torch.testing.assert_close(plain(x, SIGMA, labels), expected, rtol=1e-12, atol=1e-12)


# Identities


@BOTH
@pytest.mark.parametrize("kind", [SlidingWindowGuidance, MaskedSlidingWindowGuidance])
def test_a_window_of_the_whole_image_is_the_model(make: Callable[[], Preconditioned], kind: type[Guided]) -> None:
    model, x, sigma = make(), torch.randn(2, 2, 8, 16), torch.tensor(0.7)
    with torch.no_grad():
        for n in (2, 3):
            assert torch.equal(kind(3.0, crop=1.0, n=n, positive=model)(x, sigma), model(x, sigma))


def test_without_overlap_the_masked_form_is_off_and_the_other_is_not() -> None:
    model, x = Centered(1, 8, 8), torch.randn(2, 1, 8, 8, dtype=torch.float64)
    assert torch.equal(MaskedSlidingWindowGuidance(3.0, crop=0.5, positive=model)(x, SIGMA), model(x, SIGMA))
    assert not torch.allclose(SlidingWindowGuidance(3.0, crop=0.5, positive=model)(x, SIGMA), model(x, SIGMA))


def test_a_pixelwise_denoiser_is_not_changed() -> None:
    model, x = Centered(1, 9, 12), torch.randn(2, 1, 9, 12, dtype=torch.float64)
    model.forward = lambda x, sigma, condition=None: x.tanh() / (1 + sigma)  # type: ignore[method-assign]
    guided = SlidingWindowGuidance(5.0, crop=0.5, n=3, positive=model)(x, SIGMA)
    torch.testing.assert_close(guided, model(x, SIGMA), rtol=1e-13, atol=1e-13)


@BOTH
@pytest.mark.parametrize(("sampler", "plain"), [(Heun, [2, 2, 1]), (DPMSolver2M, [1, 1, 1])])
@pytest.mark.parametrize("kind", [SlidingWindowGuidance, MaskedSlidingWindowGuidance])
def test_a_crop_counts_as_an_evaluation_and_weight_one_costs_none(
    make: Callable[[], Preconditioned], sampler: type[Sampler], plain: list[int], kind: type[Guided]
) -> None:
    """On levels 3, 2, 1, guided at 2 alone; samples do not depend on their batch."""
    guided = kind(Interval(1.5, 1.5, 2.5), crop=0.75, positive=make())
    solver = sampler(KarrasGrid(3, sigma_min=1.0, sigma_max=3.0, rho=1.0))
    labels, counts = torch.tensor([0, 2, 1]), [0]
    x = solver.initial(guided, SampleSeeds(0, range(3)))
    for trajectory in solver.steps(guided, x, seeds=SampleSeeds(0, range(3)), condition=labels):
        counts.append(trajectory.evaluations)
    assert [b - a for a, b in zip(counts, counts[1:], strict=False)] == [plain[0], 5 * plain[1], plain[2]]
    alone = solver.sample(guided, seeds=SampleSeeds(0, [1]), condition=labels[1:2])
    torch.testing.assert_close(alone.x, trajectory.x[1:2], rtol=1e-3, atol=1e-3)


class SeparateNoise(Centered):
    """Has a noise direction separate from its clean estimate."""

    def start(self, trajectory: Trajectory) -> Predict:
        def noise(x: Tensor) -> Tensor:
            return x * x.mean((2, 3), keepdim=True)

        return lambda x, sigma, condition: Prediction(self(x, sigma, condition), noise(x))


def test_separate_noise_direction_is_averaged_alike() -> None:
    model, x = SeparateNoise(1, 8, 8), torch.randn(2, 1, 8, 8, dtype=torch.float64)
    noise = x * x.mean((2, 3), keepdim=True)
    averaged, count = by_pixel(lambda crop: crop * crop.mean((2, 3), keepdim=True), x, (6, 6), ([0, 2], [0, 2]))
    for kind, M in ((SlidingWindowGuidance, 1.0), (MaskedSlidingWindowGuidance, (count > 1).double())):
        prediction = kind(1.5, crop=0.75, positive=model).start(one_trajectory(x))(x, SIGMA, None)
        assert prediction.noise is not None
        torch.testing.assert_close(prediction.noise, noise + 0.5 * M * (noise - averaged))


def test_windows_apply_to_guided_positives() -> None:
    """The negative of a guided positive is that guidance on crops."""
    model, x, labels = Centered(1, 8, 8), torch.randn(2, 1, 8, 8, dtype=torch.float64), torch.tensor([1, 0])
    inner = ClassifierFreeGuidance(2.0, positive=model)

    def cfg(x: Tensor) -> Tensor:
        return 2 * model(x, SIGMA, labels) - model(x, SIGMA)

    D_swg, _ = by_pixel(cfg, x, (6, 6), ([0, 2], [0, 2]))
    guided = SlidingWindowGuidance(1.5, crop=0.75, positive=inner)(x, SIGMA, labels)
    torch.testing.assert_close(guided, 1.5 * cfg(x) - 0.5 * D_swg, rtol=1e-12, atol=1e-12)


# Refusals, recipes


class Models:
    """The model under evaluation alone."""

    def __init__(self, main: Denoiser) -> None:
        self.main = main

    def snapshot(self, **_: object) -> Denoiser:
        raise AssertionError


class Fixed(Network):
    """A network of one size."""

    data_shape, num_classes = (1, 8, 8), 0

    def embed(self, condition: Tensor | None, batch: int) -> Tensor | None:
        return None

    def forward(self, x: Tensor, c_noise: Tensor, embedding: Tensor | None) -> Tensor:
        return x


@pytest.mark.parametrize("kind", [SlidingWindowGuidance, MaskedSlidingWindowGuidance])
def test_models_that_do_not_take_crops_are_refused_by_resolve(kind: type[Guided]) -> None:
    with pytest.raises(ValueError, match=r"need images \(channels, height, width\); .* shape \(2,\)"):
        kind().resolve(Models(gaussian(torch.zeros(2), torch.eye(2))))
    with pytest.raises(ValueError, match=r"need a network that takes crops; Fixed only takes x of shape \(1, 8, 8\)"):
        kind().resolve(Models(Preconditioned(Fixed())))
    with pytest.raises(ValueError, match="a network that takes crops; Fixed"):
        kind(positive=Guided([Preconditioned(Fixed())], [2.0])).resolve(Models(unet((1, 8, 8))))
    with pytest.raises(ValueError, match="2 windows of 2 pixels leave gaps on a side of 8"):
        kind(crop=0.25).resolve(Models(unet()))
    for crop, n in ((0, 2), (1.1, 2), (0.5, 1)):
        with pytest.raises(ValueError, match=f"a crop in .0, 1. and n >= 2, got {crop} and {n}"):
            kind(crop=crop, n=n)


@BOTH
@pytest.mark.parametrize("kind", [SlidingWindowGuidance, MaskedSlidingWindowGuidance])
def test_its_recipe_rebuilds_it(make: Callable[[], Preconditioned], kind: type[Guided]) -> None:
    model, x, sigma = make(), torch.randn(2, 2, 8, 16), torch.tensor(0.7)
    guidance = kind(1.4, crop=0.75)
    trajectory = one_trajectory(x)
    with torch.no_grad():
        first = guidance.resolve(Models(model)).start(trajectory)(x, sigma, None).clean
        second = build(guidance.recipe).resolve(Models(model))(x, sigma)
    assert torch.equal(first, second) and trajectory.evaluations == 5
