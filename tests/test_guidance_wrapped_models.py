"""Guidances act on whatever holds a network: low-rank adapted and shifted models like the merged ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from lightning_guide.denoiser import Denoiser
from lightning_guide.guidance import (
    ConditionAnnealedGuidance,
    EntropyRectifyingGuidance,
    GaussianCondition,
    Guided,
    Perturbed,
    PerturbedAttentionGuidance,
    SamplingDropout,
    SelfAttentionGuidance,
    SkipLayerGuidance,
    SmoothedEnergyGuidance,
    StochasticSelfGuidance,
    TimeStepGuidance,
    TokenPerturbationGuidance,
)
from lightning_guide.noise import KarrasGrid
from lightning_guide.optimization.low_rank import LowRank
from lightning_guide.optimization.mean_shift import Shifted
from lightning_guide.samplers import Euler
from lightning_guide.seeds import SampleSeeds
from tests.small_networks import LABELS, NETWORKS, noisy_images

GUIDANCES = {
    "PAG": lambda model: PerturbedAttentionGuidance(2.0, positive=model),
    "SEG": lambda model: SmoothedEnergyGuidance(2.0, positive=model),
    "ERG": lambda model: EntropyRectifyingGuidance(2.0, positive=model),
    "SAG": lambda model: SelfAttentionGuidance(2.0, positive=model),
    "TSG": lambda model: TimeStepGuidance(2.0, positive=model),
    "TPG": lambda model: TokenPerturbationGuidance(2.0, positive=model),
    "SLG": lambda model: SkipLayerGuidance(2.0, positive=model),
    "S2": lambda model: StochasticSelfGuidance(2.0, positive=model),
    "CADS": lambda model: ConditionAnnealedGuidance(positive=model),
    "ICG, Gaussian": lambda model: Guided([Perturbed([GaussianCondition()], positive=model)], [2.0], positive=model),
    "dropout": lambda model: Guided([Perturbed([SamplingDropout(0.2)], positive=model)], [2.0], positive=model),
}


def adapted_and_merged(kind: str) -> tuple[LowRank, Denoiser]:
    """A model with random low-rank additions, and the same with the sums as its plain weights, in double precision."""
    adapted = LowRank(NETWORKS[kind](dropout=0.1), rank=2).eval().double()
    generator = torch.Generator().manual_seed(5)
    for name, parameter in adapted.named_parameters():
        if name.endswith(".up"):
            parameter.data.normal_(std=0.2, generator=generator)
    merged = NETWORKS[kind](dropout=0.1).double()
    for name, module in adapted.denoiser.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            merged.get_submodule(name).weight.data.copy_(module.weight)
    return adapted, merged


def samples(model: Denoiser, guidance: str) -> torch.Tensor:
    sampler = Euler(KarrasGrid(3, sigma_min=0.3, sigma_max=5.0))
    seeds, labels = SampleSeeds(0, range(3)), LABELS.clone()
    *_, end = sampler.steps(GUIDANCES[guidance](model), 5 * noisy_images().double(), seeds=seeds, condition=labels)
    return end.x


@pytest.mark.parametrize("guidance", GUIDANCES)
@pytest.mark.parametrize("kind", NETWORKS)
def test_low_rank_model_is_guided_like_the_merged_one(kind: str, guidance: str) -> None:
    adapted, merged = adapted_and_merged(kind)
    with torch.no_grad():
        one, other = samples(adapted, guidance), samples(merged, guidance)
    scale = float(other.abs().max())
    torch.testing.assert_close(one / scale, other / scale, rtol=0, atol=1e-9)
    plain = Euler(KarrasGrid(3, sigma_min=0.3, sigma_max=5.0)).steps(
        merged, 5 * noisy_images().double(), seeds=SampleSeeds(0, range(3)), condition=LABELS
    )
    *_, end = plain
    assert float((end.x - other).abs().max()) > 1e-3 * scale  # the guidance acts


def test_shifted_model_is_guided_like_its_inner_model_on_shifted_data() -> None:
    model = NETWORKS["unet"]()
    shifted = Shifted(model)
    with torch.no_grad():
        shifted.offset.fill_(0.3)
    x, sigma = noisy_images(), torch.tensor(0.7)
    one = PerturbedAttentionGuidance(2.0, positive=shifted)(x, sigma, LABELS)
    other = 0.3 + PerturbedAttentionGuidance(2.0, positive=model)(x - 0.3, sigma, LABELS)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_two_networks_in_one_model_are_refused_by_name() -> None:
    pair = Guided([NETWORKS["unet"]()], [2.0], positive=NETWORKS["unet"]())
    with pytest.raises(ValueError, match=r"acts on .* Guided has 2 networks: positive\.network, "):
        Perturbed([SamplingDropout(0.1)], positive=pair).layers()


def test_offloaded_models_are_refused() -> None:
    """A hook in place of `forward` would run the unperturbed original, silently."""
    model = NETWORKS["unet"]()
    layer = next(module for module in model.modules() if isinstance(module, nn.Module) and not list(module.children()))
    layer.forward = layer.forward  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="has its forward replaced"):
        PerturbedAttentionGuidance(2.0, positive=model)(noisy_images(), torch.tensor(0.7), LABELS)
