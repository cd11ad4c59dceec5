"""References: placeholders in a config for models that do not exist yet, and their resolution."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lightning_guide.denoiser import Denoiser, Predict, Trajectory
from lightning_guide.distributions.gaussian_mixture import GaussianMixture, gaussian
from lightning_guide.guidance import (
    Autoguidance,
    AutoguidanceBlend,
    ClassifierFreeGuidance,
    Guidance,
    Guided,
    Interval,
    Main,
    ScoreScaling,
    Snapshot,
    Unconditional,
)
from lightning_guide.guidance.base import Reference
from lightning_guide.samplers import Euler
from lightning_guide.seeds import SampleSeeds


def labeled(spread: float, classes: int = 2) -> GaussianMixture:
    means = torch.arange(float(classes))[:, None].expand(classes, 2)
    return GaussianMixture(means, spread * torch.eye(2).expand(classes, 2, 2), labels=list(range(classes)))


class Store:
    """Models of a run that record requests."""

    def __init__(self, main: Denoiser, snapshot: Denoiser) -> None:
        self.main, self.guider = main, snapshot
        self.asked: list[dict[str, Any]] = []

    def snapshot(self, *, run: str | None, images: int | float | str, sigma_rel: float) -> Denoiser:
        self.asked.append({"run": run, "images": images, "sigma_rel": sigma_rel})
        return self.guider


def references(module: nn.Module) -> list[Reference]:
    return [part for part in module.modules() if isinstance(part, Reference)]


def test_plain_denoisers_and_references_resolve() -> None:
    store = Store(labeled(0.2), labeled(0.5))
    assert Main().resolve(store) is store.main and store.main.resolve(store) is store.main
    assert Snapshot("1/16", 0.1, run="runs/small").resolve(store) is store.guider
    assert store.asked == [{"run": "runs/small", "images": "1/16", "sigma_rel": 0.1}]


def test_references_deep_inside_are_replaced_and_the_original_is_untouched() -> None:
    store = Store(labeled(0.2), labeled(0.5))
    config = ClassifierFreeGuidance(
        Interval(2.0, 0.1, 5.0), positive=ScoreScaling(1.1, positive=Autoguidance(Snapshot("1/8"), 1.5))
    )
    before = [id(module) for module in config.modules()]
    recipe = config.recipe
    resolved = config.resolve(store)
    assert not references(resolved) and len(references(config)) == 2
    assert [id(module) for module in config.modules()] == before
    assert config.recipe == resolved.recipe == recipe
    x, level, labels = torch.randn(6, 2).double(), torch.tensor(0.7), torch.arange(6) % 2
    branches = []
    for condition in (labels, None):
        good, bad = store.main(x, level, condition), store.guider(x, level, condition)
        branches.append(x + 1.1 * (bad + 1.5 * (good - bad) - x))
    torch.testing.assert_close(resolved(x, level, labels), branches[1] + 2 * (branches[0] - branches[1]))


def test_resolving_twice_gives_independent_guidances() -> None:
    config = Autoguidance(Snapshot("1/8"), 2.0)
    one, two = (config.resolve(Store(labeled(s), labeled(3 * s))) for s in (0.2, 0.7))
    x, level = torch.randn(4, 2), torch.tensor(0.5)
    expected = Autoguidance(labeled(0.6), 2.0, positive=labeled(0.2))
    torch.testing.assert_close(one(x, level), expected(x, level), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(one(x, level), two(x, level))


class Held(Guidance):
    """A guidance with denoisers in containers of other kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.positive = Main()
        self.parts = nn.ModuleDict({"deep": nn.ModuleList([nn.Sequential(Snapshot("1/2")), nn.Linear(1, 1)])})
        self.other = nn.Linear(1, 1)

    def start(self, trajectory: Trajectory) -> Predict:
        return self.positive.start(trajectory)


def test_references_in_any_container_are_found() -> None:
    held = Held()
    resolved = held.resolve(Store(labeled(0.2), labeled(0.5)))
    assert not references(resolved) and len(references(held)) == 2
    assert resolved.other is held.other


def test_models_that_do_not_fit_are_refused() -> None:
    plane, line = gaussian([0.0, 0.0], torch.eye(2)), gaussian([0.0], [[1.0]])
    with pytest.raises(ValueError) as caught:
        Autoguidance(Snapshot(), 2.0).resolve(Store(plane, line))
    assert str(caught.value) == "the guider works on x of shape (1,), the main model on (2,)"
    with pytest.raises(ValueError) as caught:
        Autoguidance(Snapshot(), 2.0).resolve(Store(labeled(0.2, 2), labeled(0.5, 3)))
    assert str(caught.value) == "the guider has 3 classes, the main model 2"
    with pytest.raises(ValueError, match=r"shape \(1,\)"):  # also where one guidance is the guider of another
        Guided([Guided([line], [2.0], positive=line)], [2.0]).resolve(Store(plane, line))


def test_an_unconditional_guider_fits_a_model_with_labels() -> None:
    guided = Autoguidance(Snapshot(), 2.0).resolve(Store(labeled(0.2), gaussian([0.0, 0.0], torch.eye(2))))
    assert guided.num_classes == 2 and bool(
        guided(torch.zeros(2, 2), torch.tensor(1.0), torch.tensor([0, 1])).isfinite().all()
    )


@pytest.mark.parametrize(
    "config",
    [
        ClassifierFreeGuidance(2.0),
        AutoguidanceBlend(Snapshot(), 2.0),
        Guided([Unconditional()], [2.0]),
        ClassifierFreeGuidance(2.0, positive=Autoguidance(Snapshot(), 2.0)),
    ],
    ids=lambda config: type(config).__name__,
)
def test_there_must_be_labels_to_drop(config: Denoiser) -> None:
    plain = gaussian([0.0, 0.0], torch.eye(2))
    with pytest.raises(ValueError, match="needs a model with labels .*, or an unconditional network of its own"):
        config.resolve(Store(plain, plain))


def test_an_unconditional_model_may_be_guided_by_an_unconditional_network_or_an_earlier_snapshot() -> None:
    plain, other = gaussian([0.0, 0.0], torch.eye(2)), gaussian([0.0, 0.0], 2 * torch.eye(2))
    x, level = torch.randn(4, 2), torch.tensor(0.5)
    for config in (ClassifierFreeGuidance(2.0, unconditional=Snapshot()), Autoguidance(Snapshot(), 2.0)):
        torch.testing.assert_close(config.resolve(Store(plain, other))(x, level), 2 * plain(x, level) - other(x, level))


def test_an_unresolved_guidance_is_refused() -> None:
    for config in (Main(), Autoguidance(Snapshot(), 2.0)):
        with pytest.raises(ValueError, match="Main is a reference without .*, as positive=model, or Run.sample"):
            Euler().sample(config, seeds=SampleSeeds(0, [0]))
        with pytest.raises(ValueError, match="Main is a reference; expected a model in its place"):
            config(torch.zeros(1, 2), torch.tensor(1.0))
    assert not hasattr(Main(), "weight")
