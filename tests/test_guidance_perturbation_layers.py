"""Names of the layers of perturbations: exact names, patterns, and refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_guide.distributions.gaussian_mixture import GaussianMixture
from lightning_guide.guidance import Guided, Unconditional
from lightning_guide.guidance.negatives import (
    IdentityAttention,
    PerturbedAttentionGuidance,
    SkipBlocks,
)
from lightning_guide.guidance.negatives.s2 import StochasticSkip
from lightning_guide.guidance.negatives.tpg import ShuffledTokens
from lightning_guide.guidance.perturbation import Perturbation, Perturbed
from lightning_guide.networks import DiffusionTransformer
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.samplers import Euler
from lightning_guide.seeds import SampleSeeds
from lightning_guide.utils.modules import matching_names, replace_modules
from tests.small_networks import LABELS, SIGMA, noisy_images, transformer, unet

CORE = {"unet": "decoder.4x4_in0.attention.core", "transformer": "blocks.2.attention.core"}


def run(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(noisy_images(), SIGMA, LABELS)


class Models:
    def __init__(self, main: Preconditioned) -> None:
        self.main = main

    def snapshot(self, **_: Any) -> Preconditioned:
        return self.main


def test_names_are_exact_and_never_prefixes() -> None:
    """blocks.1 does not match blocks.10."""
    network = transformer(depth=12).network
    assert matching_names(network, "blocks.1", "test") == ["blocks.1"]
    assert matching_names(network, "blocks.1.attention.core", "test") == ["blocks.1.attention.core"]
    assert SkipBlocks(layers=["blocks.1"]).chosen(network) == ["blocks.1"]
    assert matching_names(network, "blocks.1*.attention", "test") == [f"blocks.{i}.attention" for i in (1, 10, 11)]


def test_a_pattern_names_the_outermost_and_each_layer_counts_once() -> None:
    network = transformer().network
    blocks = [f"blocks.{i}" for i in range(4)]
    assert matching_names(network, "blocks.*", "test") == blocks
    assert matching_names(network, "*.core", "test") == [f"{name}.attention.core" for name in blocks]
    assert ShuffledTokens(layers=["blocks.*", "blocks.1"]).chosen(network) == blocks
    assert ShuffledTokens(layers=["blocks.1", "blocks.1.mlp"]).chosen(network) == ["blocks.1", "blocks.1.mlp"]


def test_layers_are_a_list_of_names() -> None:
    """Defect 1 of the widely used library: a list of layers raised a TypeError."""
    model = transformer()
    several = PerturbedAttentionGuidance(2.0, layers=["blocks.0.attention.core", "blocks.3.*.core"], positive=model)
    one = PerturbedAttentionGuidance(2.0, layers=["blocks.0.attention.core"], positive=model)
    assert not torch.allclose(run(several), run(one))
    with pytest.raises(ValueError, match=r"layers is \[7, 8\]; expected a list, each item text"):
        PerturbedAttentionGuidance(layers=[7, 8])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="SkipBlocks needs a list of names or patterns of layers, got 'blocks.1'"):
        SkipBlocks(layers="blocks.1")


@pytest.mark.parametrize("pattern", ["blocks.9.attention.core", "decoder.*.attention.core"])
def test_a_name_without_a_match_lists_the_existing_layers(pattern: str) -> None:
    model = transformer()
    expected = (
        "IdentityAttention: no layer of DiffusionTransformer is called .* there are blocks.0.attention.core, blocks"
    )
    with pytest.raises(ValueError, match=expected):
        PerturbedAttentionGuidance(layers=[pattern], positive=model)(noisy_images(), SIGMA, LABELS)
    with pytest.raises(ValueError, match=expected):
        PerturbedAttentionGuidance(layers=[pattern]).resolve(Models(model))
    with pytest.raises(ValueError, match=r"there are .*\bblocks.3.mlp\b.* and \d+ more \(docs/guidance.md") as shown:
        matching_names(model.network, "blocks.3.mpl", "test")
    assert str(shown.value).count(", ") == 4


def test_a_network_without_such_a_part_is_refused() -> None:
    model = unet()
    model.network.parts = {"block": ("decoder.*_in0",)}
    with pytest.raises(
        ValueError,
        match=r"IdentityAttention acts on the attention of a network; EDM2UNet has no default layers for it, only",
    ):
        run(Perturbed([IdentityAttention()], positive=model))


def test_models_that_cannot_be_perturbed_are_refused() -> None:
    mixture = GaussianMixture(torch.zeros(1, 2), torch.eye(2)[None])
    with pytest.raises(ValueError, match="acts on the network of a model; this GaussianMixture has no network"):
        Perturbed([IdentityAttention()], positive=mixture)(torch.zeros(1, 2), SIGMA)
    with pytest.raises(ValueError, match="at least one perturbation"):
        Perturbed([])


def test_an_unconditional_branch_is_perturbed_like_its_model() -> None:
    models = Models(unet())
    inside = Perturbed([IdentityAttention()], positive=Unconditional()).resolve(models)
    outside = Unconditional(positive=Perturbed([IdentityAttention()])).resolve(models)
    assert torch.equal(run(inside), run(outside)) and not torch.equal(run(inside), run(models.main))


def test_modules_are_replaced_in_a_clone() -> None:
    model = unet()
    plain = run(model)
    tree = replace_modules(model, {f"network.{CORE['unet']}": nn.Identity(), "network.decoder.4x4_in0": nn.Identity()})
    assert isinstance(tree, Preconditioned) and isinstance(tree.network.decoder["4x4_in0"], nn.Identity)
    assert torch.equal(run(model), plain)


@pytest.mark.parametrize("perturbation", [SkipBlocks(layers=["blocks.1"]), StochasticSkip(0.5)], ids=["skip", "random"])
def test_blocks_are_tried_once_when_references_are_resolved(
    perturbation: Perturbation, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, samples, forward = transformer(), [], DiffusionTransformer.forward

    def counted(network: DiffusionTransformer, x: Tensor, *others: Any) -> Tensor:
        samples.append(len(x))
        return forward(network, x, *others)

    monkeypatch.setattr(DiffusionTransformer, "forward", counted)
    guidance = Guided([Perturbed([perturbation])], [2.0]).resolve(Models(model))  # type: ignore[arg-type]
    assert samples == [1]
    for seed in range(2):
        Euler(2).sample(guidance, seeds=SampleSeeds(seed, range(5)))
    assert samples == [1, *[10] * 4]  # 2 steps, twice; both networks in one batch
