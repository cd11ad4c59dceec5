"""Guidance by energies and gradients on the emulated device: the CPU's samples, no mixed devices, no wait in a step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lightning_guide.denoiser import Denoiser
from lightning_guide.guidance import Guidance, posterior
from lightning_guide.guidance.gradient import LookAhead, LookAheadWithoutJacobian, NaiveGradient
from lightning_guide.guidance.training_free import (
    DPS,
    MPGD,
    Augmented,
    ClassifierGuidance,
    ColorJitter,
    Cutout,
    FreeDoM,
    Rescaled,
    Translation,
)
from lightning_guide.networks.classifiers import NoisyClassifier, PatchClassifier, SmallClassifier
from lightning_guide.objectives import (
    Blurred,
    Boxed,
    ClassLabel,
    Compressed,
    Disc,
    Distance,
    Downsampled,
    Energy,
    FileHead,
    HalfSpace,
    Linear,
    Masked,
    Measurement,
    NegativeDistance,
    NegativeEnergy,
    NetworkDistance,
    Operator,
    Quadratic,
    RandomHead,
    Reconstructed,
    Reward,
    SquaredDistance,
    TextMatch,
    TorchFunction,
    WeightedSum,
)
from lightning_guide.pretrained import OpenClipBackbone, Subspace
from lightning_guide.samplers import TimeTravel
from tests.devices import EULER, SHAPE, Models, small_transformer, waits_of_samples
from tests.energies import METHODS, Bend, basis, mixture
from tests.tiny_clip import write_clip
from tests.tiny_scores import write_head

TRUTH = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
PATH = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))


def classifier(kind: type[nn.Module] = SmallClassifier) -> nn.Module:
    torch.manual_seed(0)
    options = {"channels": 8, "depth": 1, "heads": 2} if kind is PatchClassifier else {"widths": (8, 8, 8)}
    return kind(SHAPE, num_classes=4, **options).eval().requires_grad_(False)  # type: ignore[return-value]


@pytest.fixture(scope="module")
def images() -> Models:
    return Models(small_transformer())


@pytest.mark.parametrize("name", METHODS)
def test_method_samples_without_waits(name: str) -> None:
    def build(models: Models) -> Denoiser:
        made = copy.deepcopy(METHODS[name](Bend(), models.main))
        return made.to(next(models.main.buffers()).device)

    assert not waits_of_samples(Models(mixture()), build, TimeTravel(EULER, 2))


class Flat(nn.Module):
    """Some features of an image."""

    def features(self, x: Tensor) -> list[Tensor]:
        return [x, x[:, :, ::2].tanh()]

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, ::3].tanh()


ENERGIES: dict[str, Callable[[], Energy]] = {
    "label": lambda: ClassLabel(classifier()),
    "one label": lambda: ClassLabel(classifier(PatchClassifier), 2, marginal=0.5),
    "distance": lambda: Distance(0.5),
    "squared distance": lambda: SquaredDistance(TRUTH[0]),
    "network distance": lambda: NetworkDistance(Flat(), TRUTH),
    "measured by pooling": lambda: Measurement(Downsampled(2), TRUTH),
    "measured by a blur": lambda: Measurement(Blurred(1.0), TRUTH, squared=True),
    "measured by a mask": lambda: Measurement(Masked(), TRUTH),
    "measured by a box": lambda: Measurement(Boxed(2, 2, 3, 3), TRUTH),
    "measured by projections": lambda: Measurement(Compressed(5), TRUTH),
    "linear": lambda: NegativeEnergy(Linear(TRUTH[0])),
    "quadratic": lambda: NegativeEnergy(Quadratic(TRUTH[0])),
    "peak": lambda: NegativeEnergy(NegativeDistance()),
    "function": lambda: TorchFunction("torch.linalg.vector_norm", {"dim": (1, 2, 3)}),
    "sum": lambda: WeightedSum([Distance(0.5), ClassLabel(classifier(), 1)], [1.0, 0.2]),
}


@pytest.mark.parametrize("name", ENERGIES)
def test_energy_guides_without_waits(images: Models, name: str) -> None:
    def build(models: Models) -> Denoiser:
        return DPS(ENERGIES[name](), positive=models.main, rate=0.5).to(next(models.main.parameters()).device)

    assert not waits_of_samples(images, build)


REWARDS: dict[str, Callable[[tuple[str, str]], Energy]] = {
    "reward": lambda clip: NegativeEnergy(Reward(OpenClipBackbone(*clip), RandomHead())),
    "head in a file": lambda clip: NegativeEnergy(
        Reward(OpenClipBackbone(*clip), FileHead(write_head(Path(clip[1]).parent)[1]))
    ),
    "text": lambda clip: TextMatch("a red car", model=clip[0], weights=clip[1]),
}


@pytest.mark.parametrize("name", REWARDS)
def test_reward_guides_without_waits_once_its_network_is_there(images: Models, name: str, tmp_path: Path) -> None:
    energy = REWARDS[name](write_clip(tmp_path))

    def build(models: Models) -> Denoiser:
        place = next(models.main.parameters()).device
        made = DPS(energy, positive=models.main, rate=0.5).to(place)
        energy(torch.zeros(1, *SHAPE, device=place))  # loads the network and moves it
        return made

    assert not waits_of_samples(images, build)


PLANE: dict[str, Callable[[], Energy]] = {
    "half space": lambda: HalfSpace([1.0, -1.0, 0.0]),
    "disc": lambda: Disc([0.5, 0.0, 1.0], 0.3),
    "reconstructed": lambda: Reconstructed(Bend(), Subspace(basis())),
}


@pytest.mark.parametrize("name", PLANE)
def test_energy_of_points_guides_without_waits(name: str) -> None:
    def build(models: Models) -> Denoiser:
        return MPGD(PLANE[name](), positive=models.main, rate=0.5).to(next(models.main.buffers()).device)

    assert not waits_of_samples(Models(mixture()), build)


OPERATORS: dict[str, Operator] = {"pooling": Downsampled(2), "blur": Blurred(1.0), "projections": Compressed(5)}


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("name", [name for name in posterior.__all__ if name != "PosteriorGuidance"])
def test_posterior_is_sampled_without_waits(images: Models, name: str, operator: str) -> None:
    def build(models: Models) -> Denoiser:
        measurement = Measurement(OPERATORS[operator], TRUTH, noise=1.0)  # random networks have no covariance
        made: Denoiser = getattr(posterior, name)(measurement, positive=models.main)
        return made.to(next(models.main.parameters()).device)

    if name == "TMPD" and operator == "projections":
        pytest.skip("row sums of random projections are near zero")
    assert not waits_of_samples(images, build)


def test_images_are_augmented_without_waits(images: Models) -> None:
    def build(models: Models) -> Denoiser:
        parts = [ColorJitter(), Translation(), Rescaled(), Cutout()]
        guide = FreeDoM(ClassLabel(classifier()), 0.5, estimator=Augmented(parts, 2), positive=models.main)
        return guide.to(next(models.main.parameters()).device)

    assert not waits_of_samples(images, build)


def test_classifier_of_noisy_images_guides_without_waits(images: Models) -> None:
    def build(models: Models) -> Denoiser:
        guide = ClassifierGuidance(classifier(NoisyClassifier), 2.0, positive=models.main)
        return guide.to(next(models.main.parameters()).device)

    assert not waits_of_samples(images, build)


@pytest.mark.parametrize("kind", [LookAhead, LookAheadWithoutJacobian, NaiveGradient])
def test_gradient_guides_without_waits(images: Models, kind: type[LookAhead]) -> None:
    def build(models: Models) -> Denoiser:
        place = next(models.main.parameters()).device
        guidance = kind(positive=models.main, cap=0.5)
        assert isinstance(guidance, Guidance)
        return guidance.toward(TRUTH[:1].to(place), torch.ones(1, device=place))

    assert not waits_of_samples(images, build)
