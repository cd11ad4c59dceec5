"""Recipes: objects are rebuilt from plain data, and only recipe classes are ever called."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_guide import RENAMED, RENAMED_ARGUMENTS
from lightning_guide.distributions.gaussian_mixture import GaussianMixture, gaussian
from lightning_guide.guidance import (
    Autoguidance,
    AutoguidanceBlend,
    ClassifierFreeGuidance,
    CosineWeight,
    Interval,
    ScoreScaling,
    Snapshot,
)
from lightning_guide.network import Network
from lightning_guide.networks import EDM2UNet, PointMLP
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.utils.recipe import HasRecipe, build, equivalent, find_class


class Scale(Network):
    """F = factor x, with every kind of plain argument."""

    def __init__(self, factor: float, shape: tuple[int, ...] = (2,), *, extras: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.factor, self.data_shape, self.num_classes, self.extras = factor, tuple(shape), 0, extras

    def embed(self, condition: Tensor | None, batch: int) -> None:
        return None

    def forward(self, x: Tensor, c_noise: Tensor, embedding: Tensor | None) -> Tensor:
        return self.factor * x


class Loose(HasRecipe):
    """A constructor with variadic arguments."""

    def __init__(self, first: int, *rest: int, **options: int) -> None:
        self.first, self.options = first, options


def through_json(recorded: HasRecipe) -> Any:
    """Rebuild an object from its recipe in a JSON file."""
    return build(json.loads(json.dumps(recorded.recipe, allow_nan=False)))


def test_recipe_names_the_class_and_all_arguments_defaults_included() -> None:
    assert Preconditioned(Scale(2.0)).recipe == {
        "class_path": "lightning_guide.preconditioning.Preconditioned",
        "init_args": {
            "network": {
                "class_path": f"{Scale.__module__}.Scale",
                "init_args": {"factor": 2.0, "shape": [2], "extras": None},
            },
            "preconditioning": None,
            "sigma_data": 0.5,
        },
    }


def test_recipe_does_not_depend_on_how_arguments_are_passed() -> None:
    assert Scale(2.0, (2,)).recipe == Scale(shape=(2,), factor=2.0).recipe == Scale(2.0).recipe
    assert Loose(1, a=2, b=3).recipe["init_args"] == {"first": 1, "a": 2, "b": 3}
    assert through_json(Loose(1, a=2)).options == {"a": 2}


def test_nested_network_round_trip() -> None:
    denoiser = Preconditioned(Scale(0.7, (3,), extras={"a": [1, "b", None, {"c": True}]}), sigma_data=0.25)
    again = through_json(denoiser)
    assert isinstance(again, Preconditioned) and again.recipe == denoiser.recipe
    assert again.network.extras == {"a": [1, "b", None, {"c": True}]}
    x, sigma = torch.randn(4, 3), torch.rand(4) + 0.1
    assert torch.equal(again(x, sigma), denoiser(x, sigma))


@pytest.mark.parametrize(
    "guidance",
    [
        Autoguidance(Snapshot("1/16", 0.1, run="runs/small"), 2.0),
        Autoguidance(Snapshot(images=1000), Interval(2.0, 0.2, 1.6)),
        ClassifierFreeGuidance(CosineWeight(3.0, sigma_max=5.0), positive=Autoguidance(Snapshot("1/8"), 2.0)),
        AutoguidanceBlend(Snapshot("1/8"), 2.0, alpha=0.25, interval=(0.2, 5.0)),
        ScoreScaling(Interval(CosineWeight(1.4), 0.0, 2.0)),
    ],
    ids=lambda guidance: type(guidance).__name__,
)
def test_guidance_round_trip(guidance: HasRecipe) -> None:
    again = through_json(guidance)
    assert type(again) is type(guidance) and again.recipe == guidance.recipe


def test_rebuilt_guidance_computes_the_same() -> None:
    good, bad = gaussian([0.1, 0.2], [[1.0, 0.3], [0.3, 0.7]]), gaussian([0, 0], [[2.0, 0], [0, 2.0]])
    guidance = Autoguidance(bad, Interval(2.5, 0.1, 10.0), positive=good)
    x = torch.randn(5, 2)
    for sigma in (0.05, 1.0):
        assert torch.equal(through_json(guidance)(x, torch.tensor(sigma)), guidance(x, torch.tensor(sigma)))


def test_tensors_and_lists_keep_every_bit(generator: torch.Generator) -> None:
    means = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    covariances = torch.eye(2, dtype=torch.float64).expand(3, 2, 2) / 3
    mixture = GaussianMixture(means, covariances)
    assert torch.equal(mixture.means, means)
    assert torch.equal(through_json(mixture).means, means)
    assert gaussian([1 / 3], [[0.1]]).means.item() == 1 / 3


def test_copies_keep_the_recipe_and_no_parameter_is_registered_twice() -> None:
    denoiser = Preconditioned(Scale(2.0))
    assert copy.deepcopy(denoiser).recipe == copy.copy(denoiser).recipe == denoiser.recipe
    assert pickle.loads(pickle.dumps(denoiser)).recipe == denoiser.recipe
    assert [name for name, _ in denoiser.named_children()] == ["network"]


@pytest.mark.parametrize(
    "argument", [object(), {1: 2}, torch.nn.Linear(1, 1), [{"a": {2}}]], ids=["object", "key", "module", "set"]
)
def test_arguments_other_than_plain_data_are_refused(argument: object) -> None:
    with pytest.raises(ValueError, match=r"Scale\(extras=\.\.\.\) is a .*, which a recipe cannot hold"):
        _ = Scale(1.0, extras=argument).recipe  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"class_path": "lightning_guide.nowhere.Thing"}, "lightning_guide.nowhere.Thing.*cannot be imported"),
        ({"class_path": "lightning_guide.denoiser.Nothing"}, "Nothing.*cannot be imported"),
        ({"class_path": "Preconditioned"}, "the class 'Preconditioned' cannot be imported"),
        ({"class_path": ".denoiser.Preconditioned"}, "cannot be imported"),
        ({"class_path": 3}, "'3' cannot be imported"),
        (
            {"class_path": "torch.nn.Linear", "init_args": {"in_features": 1, "out_features": 1}},
            "subclass of HasRecipe",
        ),
        ({"class_path": "subprocess.Popen", "init_args": {"args": "false"}}, "subclass of HasRecipe"),
        ({"class_path": "os.system", "init_args": {"command": "false"}}, "subclass of HasRecipe"),
        ({"class_path": "lightning_guide.guidance.Snapshot", "init_args": {"age": 1}}, "does not fit its constructor"),
        ({"class_path": "lightning_guide.guidance.Autoguidance", "init_args": {}}, "does not fit its constructor"),
        ({"init_args": {}}, "a recipe is a dict with class_path"),
        (["class_path"], "a recipe is a dict with class_path"),
    ],
)
def test_invalid_recipes_are_refused(recipe: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(recipe)


def test_foreign_classes_inside_a_recipe_are_refused_before_anything_is_built() -> None:
    inner = {"class_path": "subprocess.Popen", "init_args": {"args": "false"}}
    with pytest.raises(ValueError, match="subprocess.Popen"):
        build({"class_path": "lightning_guide.guidance.Autoguidance", "init_args": {"guider": [inner]}})


def test_recipes_of_an_older_version_are_equivalent_at_defaults() -> None:
    with torch.device("meta"):
        now = Preconditioned(EDM2UNet((1, 8, 8), model_channels=8, attention_resolutions=[])).recipe
        other = Preconditioned(EDM2UNet((1, 8, 8), model_channels=8, attention_resolutions=[], token_channels=4)).recipe
    before = copy.deepcopy(now)
    del before["init_args"]["network"]["init_args"]["token_channels"]  # an argument added in a later version
    assert before != now and equivalent(before, now) and equivalent(now, before)
    assert not equivalent(before, other)
    gone = {"class_path": "nowhere.Network", "init_args": {"a": [before]}}
    assert equivalent(gone, {"class_path": "nowhere.Network", "init_args": {"a": [now]}})
    assert not equivalent(gone, {"class_path": "nowhere.Other", "init_args": {"a": [now]}})


def test_old_argument_names_build_the_same_object(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RENAMED_ARGUMENTS, "PointMLP", {"size": "width"})
    now, before = PointMLP([2], width=8).recipe, PointMLP([2], width=8).recipe
    before["init_args"]["size"] = before["init_args"].pop("width")
    assert build(before).recipe == now and equivalent(before, now)
    with pytest.raises(ValueError, match="has size and width, the old and the new name of one argument"):
        build({**now, "init_args": now["init_args"] | {"size": 8}})


def test_every_new_name_of_a_class_is_public() -> None:
    for old, new in RENAMED.items():
        assert find_class(old if "." in old else f"lightning_guide.{old}").__name__ == new
