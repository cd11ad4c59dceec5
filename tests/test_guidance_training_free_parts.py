"""Augmentations, energies, measurements and guide networks, each against a formula."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_guide.denoiser import Trajectory
from lightning_guide.guidance.training_free import (
    DPS,
    MPGD,
    AddedNoise,
    Augmented,
    ColorJitter,
    Cutout,
    Rescaled,
    Resized,
    Translation,
)
from lightning_guide.guidance.training_free.augmentations import Augmentation
from lightning_guide.guidance.training_free.schedules import StepContext
from lightning_guide.networks.classifiers import SmallClassifier
from lightning_guide.objectives import (
    Blurred,
    Boxed,
    ClassLabel,
    Compressed,
    Disc,
    Distance,
    Downsampled,
    HalfSpace,
    Masked,
    Measurement,
    NetworkDistance,
    Reconstructed,
    SquaredDistance,
    Style,
)
from lightning_guide.objectives.operators import Operator
from lightning_guide.pretrained import RunNetwork, Subspace, TimmNetwork
from lightning_guide.samplers import Euler
from lightning_guide.seeds import SampleSeeds
from lightning_guide.snapshots import SnapshotStore
from tests.energies import GRID, mixture

AUGMENTATIONS: list[Augmentation] = [ColorJitter(), Translation(), Rescaled(), Cutout(), AddedNoise(0.3), Resized(11)]
OPERATORS: list[Operator] = [Downsampled(4), Blurred(1.3), Masked(0.4, seed=2), Boxed(1, 2, 3, 4), Compressed(7)]


def by_name(each: object) -> str:
    return type(each).__name__


def copies(augmentation: Augmentation, x: Tensor, n: int = 6, seed: int = 0) -> Tensor:
    transform = augmentation.draw(SampleSeeds(seed, range(len(x))), n, x.device)
    return transform(x.expand(n, *x.shape))


# Augmentations


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=by_name)
def test_augmentations_are_differentiable_and_differ_between_copies(augmentation: Augmentation) -> None:
    x = torch.randn(3, 2, 8, 8, dtype=torch.float64)
    drawn = copies(augmentation, x)
    assert drawn.shape[:3] == (6, 3, 2) and drawn.dtype == torch.float64
    if not isinstance(augmentation, Resized):
        assert (drawn[0] - drawn[1]).abs().max() > 1e-3, "all copies are alike"
        same = copies(augmentation, x[:1].expand(3, -1, -1, -1))
        assert (same[:, 0] - same[:, 1]).abs().max() > 1e-3, "all samples are alike"
    transform = augmentation.draw(SampleSeeds(0, range(2)), 2, x.device)
    small = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda v: transform(v.expand(2, *v.shape)), small.requires_grad_())


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=by_name)
def test_draws_depend_only_on_the_sample_and_differ_between_steps(augmentation: Augmentation) -> None:
    x = torch.randn(4, 2, 8, 8)
    whole = copies(augmentation, x)
    transform = augmentation.draw(SampleSeeds(0, [2]), 6, x.device)
    torch.testing.assert_close(transform(x[2:3].expand(6, 1, -1, -1, -1)), whole[:, 2:3])
    estimator, seeds = Augmented([augmentation], 6), SampleSeeds(0, range(4))
    context = StepContext(x, 1.0, 0.5, Trajectory(x=x, seeds=seeds, sigma=1.0))
    first, second = estimator.draw(x, context), estimator.draw(x, context)
    assert torch.equal(first(x), first(x)), "one draw must not change"
    assert isinstance(augmentation, Resized) or not torch.equal(first(x), second(x))


def test_translation_moves_by_whole_pixels_and_fills_with_zeros() -> None:
    x = torch.rand(1, 1, 8, 8) + 0.1
    found = set()
    for each in copies(Translation(0.125), x, 200)[:, 0]:
        shifts = [
            (i, j)
            for i in (-1, 0, 1)
            for j in (-1, 0, 1)
            if torch.equal(each, F.pad(x[0], (1 + j, 1 - j, 1 + i, 1 - i))[:, 1:9, 1:9])
        ]
        assert len(shifts) == 1
        found |= set(shifts)
    assert len(found) == 9
    assert copies(Translation(0.25), x, 200)[:, 0, 0, :2].abs().sum((1, 2)).min() == 0


def test_cutout_zeroes_a_square_of_half_the_side() -> None:
    holes = (copies(Cutout(0.5), torch.ones(1, 1, 8, 8), 300)[:, 0, 0] == 0).float()
    assert int(holes.sum((1, 2)).max()) == 16 and int(holes.sum((1, 2)).min()) >= 4
    assert torch.equal(holes, holes.amax(2, keepdim=True) * holes.amax(1, keepdim=True)), "no rectangle"


def test_color_jitter_is_three_affine_maps() -> None:
    """Only the brightness of a constant image changes; spreads stay within the published factors."""
    flat = copies(ColorJitter(), torch.full((1, 3, 4, 4), 0.2), 500)
    assert torch.allclose(flat, flat[..., :1, :1, :1].expand_as(flat), atol=1e-6)
    assert float(flat.min()) == pytest.approx(-0.3, abs=0.02) and float(flat.max()) == pytest.approx(0.7, abs=0.02)
    x = torch.randn(1, 1, 6, 6)
    gray = copies(ColorJitter(), x, 500)[:, 0]
    ratio = gray.flatten(1).std(1) / x.std()
    assert float(ratio.min()) == pytest.approx(0.5, abs=0.02) and float(ratio.max()) == pytest.approx(1.5, abs=0.02)


def test_rescaling_a_disc_changes_its_area() -> None:
    grid = torch.linspace(-1, 1, 64)
    disc = ((grid[:, None] ** 2 + grid[None, :] ** 2) < 0.25).float()[None, None]
    areas = copies(Rescaled(0.2), disc, 400).sum((-3, -2, -1))[:, 0] / disc.sum()
    assert float(areas.min()) == pytest.approx(0.64, abs=0.03) and float(areas.max()) == pytest.approx(1.44, abs=0.04)


# Energies


def test_distances_and_regions_match_their_formulas() -> None:
    x = torch.tensor([[1.0, 2.0], [-1.0, 0.5]], dtype=torch.float64)
    assert SquaredDistance([0.0, 0.0], 2.0)(x).tolist() == [5 / 8, 1.25 / 8]
    assert Distance([0.0, 0.0])(x).tolist() == pytest.approx([5**0.5, 1.25**0.5])
    assert HalfSpace([1.0, 0.0], 0.5, softness=2.0)(x).tolist() == [0.0, 1.5**2 / 8]
    assert Disc([0.0, 0.0], 1.5)(x).tolist() == pytest.approx([(5**0.5 - 1.5) ** 2 / 2, 0.0])
    assert Disc([0.0, 0.0], 1.5, inside=False)(x).tolist() == pytest.approx([0.0, (1.5 - 1.25**0.5) ** 2 / 2])


def test_a_region_constraint_reduces_the_share_of_samples_outside() -> None:
    outside = []
    for rate in (0.0, 3.0):
        guide = DPS(HalfSpace([0.0, 1.0, 0.0], 0.2, softness=0.3), rate, positive=mixture())
        x = Euler(GRID).sample(guide, seeds=SampleSeeds(0, range(200))).x
        outside.append(float((x[:, 1] < 0.1).double().mean()))
    assert outside[0] > 0.3 and outside[1] < 0.5 * outside[0]


class Logits(nn.Module):
    """A linear classifier of three classes."""

    num_classes = 3

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[:, 0], 2 * x[:, 1], -x[:, 0]], 1)


def test_class_label_is_the_cross_entropy() -> None:
    x, labels = torch.randn(4, 2, dtype=torch.float64), torch.tensor([2, 0, -1, 1])
    loss, f = ClassLabel(Logits()), Logits()(x)
    expected = F.cross_entropy(f, labels.clamp(min=0), reduction="none") * (labels >= 0)
    torch.testing.assert_close(loss(x, labels), expected)
    torch.testing.assert_close(ClassLabel(Logits(), 1)(x), F.cross_entropy(f, torch.ones(4).long(), reduction="none"))
    torch.testing.assert_close(ClassLabel(Logits(), 1, marginal=0.0)(x), -f[:, 1] + torch.tensor(3.0).log())
    half = ClassLabel(Logits(), 1, joint=0.8, marginal=0.5)(x)
    torch.testing.assert_close(half, -0.8 * f[:, 1] + (0.5 * f).exp().sum(1).log())
    assert (loss.num_classes, ClassLabel(Logits(), 1).num_classes) == (3, 0)
    for condition in (None, torch.full((4,), -1)):
        with pytest.raises(ValueError, match="no sample has a label"):
            loss(x, condition)
    with pytest.raises(ValueError, match="class label 7 is out of range; the classifier has 3 classes"):
        ClassLabel(Logits(), 7)(x)


def test_style_and_network_distance_match_their_formulas() -> None:
    network, x, reference = nn.Conv2d(2, 4, 3, padding=1), torch.randn(3, 2, 5, 6), torch.randn(2, 5, 6)
    features, target = network(x).detach(), network(reference[None]).detach()
    torch.testing.assert_close(NetworkDistance(network, reference)(x), (features - target).flatten(1).norm(dim=1))
    gram = torch.einsum("bchw,bdhw->bcd", features, features) / 30
    goal = torch.einsum("bchw,bdhw->bcd", target, target) / 30
    torch.testing.assert_close(Style(network, reference, scale=100)(x), (gram - goal).flatten(1).norm(dim=1) / 100)
    shuffled = x.flatten(2)[:, :, torch.randperm(30)].reshape(x.shape)
    pointwise = nn.Conv2d(2, 4, 1)
    torch.testing.assert_close(Style(pointwise, reference)(shuffled), Style(pointwise, reference)(x))


# Inverse problems


@pytest.mark.parametrize("operator", OPERATORS, ids=by_name)
def test_measurement_operators_are_linear_and_the_same_for_all_samples(operator: Operator) -> None:
    x, y = torch.randn(3, 2, 8, 8, dtype=torch.float64), torch.randn(3, 2, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(operator(2 * x - 3 * y), 2 * operator(x) - 3 * operator(y))
    torch.testing.assert_close(operator(x)[1:2], operator(x[1:2]))
    assert torch.equal(operator(x), operator(x))


def test_measurement_operators_match_their_formulas() -> None:
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(Downsampled(4)(x), x.reshape(2, 1, 2, 4, 2, 4).mean((3, 5)))
    torch.testing.assert_close(Blurred(0.8)(torch.ones_like(x)), torch.ones_like(x))
    spot = torch.zeros(1, 1, 21, 21, dtype=torch.float64)
    spot[..., 10, 10] = 1
    ratio = Blurred(1.5)(spot)[0, 0, 10, 12] / Blurred(1.5)(spot)[0, 0, 10, 10]
    assert float(ratio) == pytest.approx(math.exp(-0.5 * (2 / 1.5) ** 2))
    kept = Masked(0.3)(torch.ones(1, 3, 64, 64))
    assert float(kept.mean()) == pytest.approx(0.3, abs=0.03) and torch.equal(kept[0, 0], kept[0, 2])
    box = Boxed(1, 2, 3, 4)(torch.ones(1, 1, 8, 8))
    assert int((box == 0).sum()) == 12 and float(box[0, 0, 1:4, 2:6].sum()) == 0
    many = Compressed(4000)(x).square().sum(1) / x.flatten(1).square().sum(1)
    torch.testing.assert_close(many, torch.ones(2).double(), rtol=0.1, atol=0)
    with pytest.raises(ValueError, match="cannot be averaged in squares of 3"):
        Downsampled(3)(x)


def test_each_sample_has_its_own_measurement(tmp_path: Path) -> None:
    truth = torch.randn(3, 1, 8, 8)
    np.save(tmp_path / "truth.npy", truth.numpy())
    loss = Measurement(Downsampled(2), str(tmp_path / "truth.npy"), noise=0.1)
    x = torch.zeros(4, 1, 8, 8)
    trajectory = Trajectory(x=x, seeds=SampleSeeds(0, [0, 4, 2, 7]), sigma=1.0)
    hidden, y = loss.observe(trajectory)
    torch.testing.assert_close(hidden, truth[[0, 1, 2, 1]])
    noise = SampleSeeds(0, [0, 4, 2, 7]).normal("measurement", (1, 4, 4))
    torch.testing.assert_close(y, Downsampled(2)(hidden) + 0.1 * noise)
    points = torch.randn(2, 1, 8, 8)
    fresh = Trajectory(x=x, seeds=SampleSeeds(0, [0, 4, 2, 7]), sigma=1.0)
    found = loss.start(fresh)(points, None, torch.tensor([3, 0]))
    torch.testing.assert_close(found, (y[[3, 0]] - Downsampled(2)(points)).flatten(1).norm(dim=1))
    squared = Measurement(Downsampled(2), truth, noise=0.1, squared=True)
    fresh = Trajectory(x=x, seeds=SampleSeeds(0, [0, 4, 2, 7]), sigma=1.0)
    torch.testing.assert_close(squared.start(fresh)(points, None, torch.tensor([3, 0])), found**2 / 0.02)
    with pytest.raises(ValueError, match="there is no file nowhere.npy"):
        Measurement(Downsampled(2), "nowhere.npy").observe(trajectory)
    with pytest.raises(ValueError, match=r"have shape \(3, 1, 8, 8\); expected \(N, \(1, 4, 4\)\)"):
        Measurement(Downsampled(2), truth).observe(Trajectory(x=x[..., :4, :4], seeds=trajectory.seeds, sigma=1.0))


def test_a_guided_reconstruction_agrees_with_its_measurement() -> None:
    """On the mixture, with two of three coordinates measured, the residual falls to the noise."""

    class Two(Operator):
        def __call__(self, x: Tensor) -> Tensor:
            return x[:, :2]

    truth, _ = mixture().sample(8, torch.Generator().manual_seed(0))
    loss = Measurement(Two(), truth, noise=0.05, squared=False)
    residuals = []
    for rate in (0.0, 0.6):
        seeds = SampleSeeds(0, range(64))
        end = Euler(GRID).sample(MPGD(loss, rate, positive=mixture()), seeds=seeds)
        fresh = Trajectory(x=end.x, seeds=SampleSeeds(0, range(64)), sigma=1.0)
        residuals.append(float((end.x[:, :2] - loss.observe(fresh)[1]).norm(dim=1).median()))
    assert residuals[1] < 0.5 * residuals[0]


# Autoencoders and guide networks


def test_a_subspace_reconstructs_by_projection() -> None:
    basis = torch.linalg.qr(torch.randn(6, 2, dtype=torch.float64))[0]
    center = torch.randn(6, dtype=torch.float64)
    auto = Subspace(basis, center=center, data_shape=[2, 3])
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    again = auto.decode(auto.encode(x))
    torch.testing.assert_close(again.flatten(1), center + (x.flatten(1) - center) @ basis @ basis.T)
    torch.testing.assert_close(auto.decode(auto.encode(again)), again)
    loss = SquaredDistance(torch.zeros(2, 3))
    torch.testing.assert_close(Reconstructed(loss, auto)(x), loss(again))
    with pytest.raises(ValueError, match="orthonormal columns"):
        Subspace(2 * basis)


def stored_run(folder: Path, network: Any) -> str:
    SnapshotStore(folder / "snapshots").save(
        network.state_dict(), images=10, sigma_rel=0.0, recipe=network.recipe, planned_images=10
    )
    return str(folder)


def test_run_network_loads_the_network_of_a_run(tmp_path: Path) -> None:
    network = SmallClassifier([1, 8, 8], num_classes=4, widths=[8, 16]).eval()
    run, x = stored_run(tmp_path, network), torch.randn(3, 1, 8, 8)
    guide = RunNetwork(run)
    assert guide.num_classes == 4 and not list(guide.parameters())
    torch.testing.assert_close(guide(x), network(x))
    assert guide(x.double()).dtype == torch.float64
    torch.testing.assert_close(RunNetwork(run, blocks=3)(x), network.blocks[:3](x))
    single = guide(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(guide(x), single), "autocast around a guide must not change it"
    loss = ClassLabel(guide)
    assert loss.num_classes == 4
    torch.testing.assert_close(
        loss(x, torch.tensor([0, 3, 1])), F.cross_entropy(network(x), torch.tensor([0, 3, 1]), reduction="none")
    )
    with pytest.raises(ValueError, match="no network in the run 'nowhere'"):
        RunNetwork("nowhere")(x)


def test_a_timm_network_preprocesses_like_timm() -> None:
    import timm
    from timm.data import resolve_data_config

    guide = TimmNetwork("resnet10t", pretrained=False)
    x = 2 * torch.rand(2, 3, 32, 32) - 1
    model = guide.network()
    config = resolve_data_config(model=model)
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
    size = config["input_size"][1:]
    image = F.interpolate((x + 1) / 2, size, mode="bicubic", align_corners=False, antialias=True)
    torch.testing.assert_close(guide(x), model((image - mean) / std))
    assert guide.num_classes == 1000
    assert guide(x[:, :1]).shape == (2, 1000)
    soft = TimmNetwork("resnet10t", pretrained=False, softplus=3.0)
    kinds = [type(part) for part in soft.network().modules()]
    assert nn.ReLU not in kinds and nn.Softplus in kinds
    features = TimmNetwork("resnet10t", pretrained=False, stage=1)(x)
    assert features.ndim == 4 and features.shape[1] == timm.create_model("resnet10t").feature_info[1]["num_chs"]
    with pytest.raises(ValueError, match="timm has no model 'resnet10'; names like it"):
        TimmNetwork("resnet10")(x)


def test_timm_weights_from_a_local_file(tmp_path: Path) -> None:
    import timm

    model = timm.create_model("resnet10t", pretrained=False).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    guide = TimmNetwork("resnet10t", weights=str(tmp_path / "weights.pth"))
    torch.testing.assert_close(guide.network().state_dict()["fc.weight"], model.state_dict()["fc.weight"])
    with pytest.raises(ValueError, match="there is no file nowhere.pth"):
        TimmNetwork("resnet10t", weights="nowhere.pth").network()
