"""Frozen pretrained networks: loaded once at first use, frozen, and in no state dict, module tree or recipe."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_guide.evaluation import ClassifierFeatures, ClipFeatures, InceptionFeatures, TimmFeatures
from lightning_guide.guidance import SaliencyMask
from lightning_guide.objectives import TextMatch
from lightning_guide.pretrained import DiffusersVAE, FrozenNetwork, NamedNetwork, OpenClipBackbone, RunNetwork
from lightning_guide.utils.recipe import HasRecipe


class Linear(HasRecipe, FrozenNetwork, nn.Module):
    """Module around a linear network with dropout that counts how often it is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded = 0

    def _load(self) -> nn.Module:
        self.loaded += 1
        return nn.Sequential(nn.Linear(2, 2), nn.Dropout()).train()

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.network(x)(x)
        return output


def test_network_is_loaded_once_at_first_use_without_global_random_numbers() -> None:
    module, state = Linear(), torch.get_rng_state()
    assert module.loaded == 0
    x = torch.ones(3, 2, requires_grad=True)
    assert torch.equal(module(x), module(x)) and module.loaded == 1
    assert torch.equal(torch.get_rng_state(), state)


def test_network_is_frozen_and_gradients_reach_the_input() -> None:
    module, x = Linear(), torch.ones(3, 2, requires_grad=True)
    module.train()(x).sum().backward()
    assert not any(part.training for part in module.network().modules())
    assert not any(parameter.requires_grad for parameter in module.network().parameters())
    assert x.grad is not None and x.grad.abs().sum() > 0


def test_network_is_in_no_state_dict_module_tree_or_recipe() -> None:
    module = Linear()
    module(torch.ones(1, 2))
    assert not module.state_dict() and list(module.modules()) == [module]
    assert not list(module.parameters()) and not module.recipe["init_args"]


def test_network_follows_the_device_of_its_input() -> None:
    module = Linear()
    assert module.network(torch.device("meta"))[0].weight.device.type == "meta"
    assert module.network()[0].weight.device.type == "meta"


@pytest.mark.parametrize(
    "holder",
    [
        ClassifierFeatures("run"),
        TimmFeatures("resnet18"),
        ClipFeatures(),
        InceptionFeatures(),
        OpenClipBackbone(),
        RunNetwork("run"),
        NamedNetwork("package.Network"),
        TextMatch("a dog"),
        DiffusersVAE("path"),
        SaliencyMask(),
    ],
    ids=lambda holder: type(holder).__name__,
)
def test_constructors_load_nothing(holder: FrozenNetwork) -> None:
    assert isinstance(holder, FrozenNetwork) and not holder._held
