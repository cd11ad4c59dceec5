"""Every guidance of configs/guidance on every architecture of diffusers: it guides, or is refused by name."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser
from lightning_guide.guidance.negatives import (
    ClassifierFreeGuidance,
    IndependentConditionGuidance,
    SkipBlocks,
    StochasticSkip,
    TokenPerturbationGuidance,
)
from lightning_guide.guidance.training_free import DPS, MPGD, TFG, FreeDoM, LossGuidedDiffusion, UniversalGuidance
from lightning_guide.noise import KarrasGrid
from lightning_guide.objectives import Downsampled, Measurement
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.pretrained import DiffusersNetwork
from lightning_guide.pretrained.schedulers import scheduled_sampling
from lightning_guide.samplers import Euler
from lightning_guide.seeds import SampleSeeds
from tests.guidance_files import NO_TEXTS, OF_TEXTS, guidances_of
from tests.test_pretrained_diffusers_network import condition, network

pytest.importorskip("diffusers", reason="needs the extra `pretrained`")

Tiny = Callable[[str], Path]
FOLDER = Path(__file__).parent.parent / "configs" / "guidance"
FILES = sorted(FOLDER.glob("*.yaml"))
NAMES = ["ddpm", "sd", "sdxl", "if", "dit", "pixart", "sd3", "flux"]
EULER = Euler(KarrasGrid(2, sigma_min=0.3, sigma_max=5.0))

CLASSIFIER_FREE = "classifier-free guidance needs a model with labels or embeddings"
REFUSED = dict.fromkeys(
    ["ag", "apg", "autoguidance_cfg", "beta_cfg", "cfg", "cfg_interval", "cfg_pp", "cfg_rescale", "cfg_zero_star"]
    + ["cfg_schedules", "fdg", "mambo_g", "perp_neg", "reg", "smc_cfg", "tcfg"],
    CLASSIFIER_FREE,
) | {
    "cads": "AnnealedCondition acts on the embedding of labels or texts; this network has none",
    "icg": "RandomCondition takes its condition from labels or prompts; this model has neither",
    "icg_gaussian": "GaussianCondition acts on the embedding of labels or texts; this network has none",
}
"""What a network without labels and texts cannot do."""


def refusal(name: str, method: str) -> str | None:
    """The error of a method for a network, if there is one."""
    if method == "nag" and name == "if":
        return "or not by attention alone, so that it cannot read two"
    if method in OF_TEXTS and name in ("ddpm", "dit"):
        return NO_TEXTS
    return REFUSED.get(method) if name == "ddpm" else None


class Two:
    """A model of diffusers, the same with weights far off, and prompts."""

    def __init__(self, tiny: Tiny, name: str) -> None:
        settings = json.loads((tiny(name) / "scheduler" / "scheduler_config.json").read_text())
        preconditioning = scheduled_sampling(settings, 3, tokens=16).preconditioning
        self.network = network(tiny, name)
        self.main = Preconditioned(self.network, preconditioning, sigma_data=1.0)
        self.other = copy.deepcopy(self.main)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in self.other.parameters():
                parameter.mul_(1 + 0.2 * torch.randn(parameter.shape, generator=generator))
        given = condition(self.network, 4)
        self.condition = None if given is None else given[:2]
        self.prompts = given if self.network.token_channels else None
        self.plain = self.sample(self.main)

    def snapshot(self, **_: Any) -> Denoiser:
        return self.other

    def sample(self, denoiser: Denoiser) -> Tensor:
        x = EULER.sample(denoiser, seeds=SampleSeeds(0, range(2)), condition=self.condition).x
        assert x.isfinite().all()
        return x


@pytest.fixture(scope="module")
def loaded(tiny_pipeline: Tiny) -> Callable[[str], Two]:
    found: dict[str, Two] = {}

    def load(name: str) -> Two:
        if name not in found:
            found[name] = Two(tiny_pipeline, name)
        return found[name]

    return load


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
@pytest.mark.parametrize("name", NAMES)
def test_a_guidance_guides_or_is_refused_by_name(loaded: Callable[[str], Two], name: str, file: Path) -> None:
    models = loaded(name)
    for guidance in guidances_of(file).values():
        if reason := refusal(name, file.stem):
            with pytest.raises(ValueError, match=reason):
                guidance.resolve(models)
            return
        change = (models.sample(guidance.resolve(models)) - models.plain).abs().max() / models.plain.abs().max()
        assert change > 1e-5, "it does nothing"
    assert torch.equal(models.sample(models.main), models.plain), "the positive network has changed"


def test_a_network_without_a_null_class_is_guided_by_other_classes(loaded: Callable[[str], Two]) -> None:
    models = loaded("consistency")
    with pytest.raises(ValueError, match="no class for no condition"):
        models.sample(ClassifierFreeGuidance(2.0).resolve(models))
    assert not torch.allclose(models.sample(IndependentConditionGuidance(2.0).resolve(models)), models.plain, atol=1e-3)


# Blocks of joint attention


@pytest.mark.parametrize(("name", "blocks"), [("sd3", "transformer_blocks"), ("flux", "single_transformer_blocks")])
def test_texts_keep_their_order_in_shuffled_blocks(loaded: Callable[[str], Two], name: str, blocks: str) -> None:
    models = loaded(name)
    guided = models.sample(TokenPerturbationGuidance(2.0, layers=[f"model.{blocks}.*"]).resolve(models))
    assert not torch.allclose(guided, models.plain, atol=1e-3)


def test_the_last_block_of_stable_diffusion_3_returns_no_texts_and_is_never_skipped(
    loaded: Callable[[str], Two],
) -> None:
    found = loaded("sd3").network
    assert isinstance(found, DiffusersNetwork)
    assert StochasticSkip(protected=[]).chosen(found) == ["model.transformer_blocks.0", "model.transformer_blocks.1"]
    with pytest.raises(ValueError, match="cannot skip model.transformer_blocks.2: it turns .* into None and "):
        SkipBlocks(layers=["model.transformer_blocks.2"]).chosen(found)


# Gradients


@pytest.mark.parametrize("name", ["ddpm", "sd", "sd3"])
def test_gradients_of_an_energy_reach_x_through_the_network(loaded: Callable[[str], Two], name: str) -> None:
    models = loaded(name)
    truth = torch.randn(2, *models.main.data_shape, generator=torch.Generator().manual_seed(0))
    energy = Measurement(Downsampled(2), truth)
    positive = models.main
    methods: list[Denoiser] = [
        DPS(energy, positive=positive, rate=1.0),
        FreeDoM(energy, positive=positive, rate=1.0),
        MPGD(energy, positive=positive, rate=1.0),
        LossGuidedDiffusion(energy, positive=positive, weight=1.0, draws=2),
        UniversalGuidance(energy, positive=positive, weight=1.0),
        TFG(energy, positive=positive, rho=1.0, mu=0.25, gamma=0.01),
    ]
    for method in methods:
        guided = models.sample(method.resolve(models))
        assert (guided - models.plain).abs().max() > 1e-4 * models.plain.abs().max(), type(method).__name__
    assert torch.equal(models.sample(models.main), models.plain)
    assert all(parameter.grad is None for parameter in models.main.parameters())
