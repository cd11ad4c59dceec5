"""MDM: sizes, what the condition is, and its parts under the guidances that act on networks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_guide.conditioning import drop_condition
from lightning_guide.denoiser import Denoiser, Trajectory
from lightning_guide.guidance.negatives import (
    BlurredQueries,
    ClassifierFreeGuidance,
    IdentityAttention,
    PerturbedAttentionGuidance,
    ShuffledTokens,
    SkipBlocks,
    SkipLayerGuidance,
    SmoothedEnergyGuidance,
    SoftIdentityAttention,
)
from lightning_guide.guidance.perturbation import Perturbation, Perturbed
from lightning_guide.networks import MDM
from lightning_guide.noise import KarrasGrid
from lightning_guide.noise_schedule import NoiseSchedule
from lightning_guide.preconditioning import Preconditioned, SamplePrediction
from lightning_guide.samplers import DDIM, Euler
from lightning_guide.seeds import SampleSeeds
from lightning_guide.utils.modules import names_of_layers
from lightning_guide.utils.recipe import build
from tests.guidance_files import NO_TEXTS, OF_TEXTS, guidances_of

FILES = sorted((Path(__file__).parent.parent / "configs/guidance").glob("*.yaml"))
SHAPE = (7, 12)
T = torch.tensor([0.0, 37.5, 999.0], dtype=torch.float64)


def small(**options: int) -> MDM:
    torch.manual_seed(0)
    network = MDM(SHAPE, **{"token_channels": 6, "channels": 16, "depth": 3, "heads": 2, "hidden": 24, **options})
    return network.double().eval()


def motions(frames: int = SHAPE[1]) -> Tensor:
    return torch.randn(3, SHAPE[0], frames, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def texts() -> Tensor:
    return torch.randn(3, 1, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def denoiser() -> Denoiser:
    return Preconditioned(small(), SamplePrediction(NoiseSchedule("cosine")), sigma_data=1.0).eval()


@torch.no_grad()
def call(model: Denoiser, condition: Tensor | None = None) -> Tensor:
    """One step of a trajectory at sigma = 2."""
    trajectory = Trajectory(motions(), SampleSeeds(0, range(3)), sigma=2.0)
    sigma = torch.tensor(2.0, dtype=torch.float64)
    return model.start(trajectory)(motions(), sigma, texts() if condition is None else condition).clean


def test_published_size() -> None:
    with torch.device("meta"):
        network = MDM()
    count = sum(weight.numel() for weight in network.parameters())
    C, hidden = 512, 1024
    block = 4 * (C * C + C) + 2 * C * hidden + hidden + C + 4 * C
    assert count == 8 * block + 2 * (C * C + C) + 512 * C + C + 263 * C + C + C * 263 + 263 == 17_880_327
    assert f"{count:,}" in (MDM.__doc__ or "") and network.data_shape == (263, 196)
    for kind, patterns in network.parts.items():
        assert names_of_layers(network, patterns, kind)


def test_condition_is_one_vector_and_zeros_are_none() -> None:
    network, x = small(), motions()
    with torch.no_grad():
        given, none = network(x, T, network.embed(texts(), 3)), network(x, T, network.embed(None, 3))
        dropped = network(x, T, network.embed(drop_condition(texts(), torch.tensor([False, True, False])), 3))
    assert given.shape == x.shape and (given - none).abs().amax((1, 2)).min() > 1e-3
    torch.testing.assert_close(dropped, torch.stack([given[0], none[1], given[2]]))
    with pytest.raises(ValueError, match="the condition has 5 tokens; MDM reads one, the vector of the whole text"):
        network.embed(torch.ones(3, 5, 6), 3)
    plain = small(token_channels=0)
    assert plain.embed(None, 3) is None and "label_embedding" not in plain.parts
    assert plain(x, T, None).shape == x.shape


def test_motions_of_other_lengths_and_orders() -> None:
    """Any number of frames; every frame depends on all others and on its place."""
    network = small()
    with torch.no_grad():
        assert network(motions(30), T, network.embed(None, 3)).shape == (3, 7, 30)
        y = network(motions(), T, None)
        turned = network(motions().flip(2), T, None).flip(2)
    assert (turned - y).abs().max() > 1e-2
    x = motions().requires_grad_()
    (gradient,) = torch.autograd.grad(network(x, T, None)[0, :, -1].sum(), x)
    assert gradient[0].abs().amax(0).min() > 1e-8 and not gradient[1:].any()


def test_recipe_and_errors() -> None:
    network = small()
    other = build(network.recipe).double().eval()
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(motions(), T, None), network(motions(), T, None))
    with pytest.raises(ValueError, match=r"data_shape is \(263, 1, 196\); expected \(features, frames\)"):
        MDM((263, 1, 196))
    with pytest.raises(ValueError, match="16 channels must be a multiple of 3 heads"):
        small(heads=3)


# Guidances


@pytest.mark.parametrize(
    "perturbation",
    [SoftIdentityAttention(0.0), BlurredQueries(0.1), SkipBlocks(layers=[]), IdentityAttention(layers=[])],
    ids=lambda each: type(each).__name__,
)
def test_perturbations_that_change_nothing(perturbation: Perturbation) -> None:
    torch.testing.assert_close(call(Perturbed([perturbation], positive=denoiser())), call(denoiser()))


@pytest.mark.parametrize(
    "perturbation",
    [IdentityAttention(), BlurredQueries(), SkipBlocks(), ShuffledTokens()],
    ids=lambda each: type(each).__name__,
)
def test_perturbations_act_on_frames_and_keep_the_condition(perturbation: Perturbation) -> None:
    model = Perturbed([perturbation], positive=denoiser())
    y = call(model)
    assert (y - call(denoiser())).abs().max() > 1e-3
    assert (y - call(model, -texts())).abs().amax((1, 2)).min() > 1e-3


@pytest.mark.parametrize(
    "kind", [ClassifierFreeGuidance, PerturbedAttentionGuidance, SmoothedEnergyGuidance, SkipLayerGuidance]
)
def test_guidance_of_weight_one_and_its_line(kind: type) -> None:
    """w = 1 is the model, and D is linear in w."""
    zero, one, three = (call(kind(weight, positive=denoiser())) for weight in (0.0, 1.0, 3.0))
    torch.testing.assert_close(one, call(denoiser()))
    torch.testing.assert_close(three, zero + 3 * (one - zero))
    assert (three - one).abs().max() > 1e-3


def test_the_condition_token_is_not_perturbed() -> None:
    """Identity attention of all layers: frames see each other only through the token."""
    network = denoiser()
    perturbed = Perturbed([IdentityAttention(layers=["blocks.*.attention.core"])], positive=network)
    tree = perturbed.network(Trajectory(motions(), SampleSeeds(0, range(3)), sigma=2.0))
    x = motions().requires_grad_()
    out = tree(x, torch.tensor(2.0, dtype=torch.float64), texts())
    (gradient,) = torch.autograd.grad(out[0, :, 3].sum(), x)
    assert gradient[0].abs().amax(0).min() > 1e-9  # the token of the first layer reads all frames
    core = tree.get_submodule("network.blocks.0.attention.core")
    q, k, v = torch.randn(3, 1, 2, 13, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind(0)
    result = core(q[..., :12, :], k, v, (1, 12))
    own = (q[..., 5, :] * k[..., 5, :]).sum(-1) / math.sqrt(8)
    text = (q[..., 5, :] * k[..., 12, :]).sum(-1) / math.sqrt(8)
    share = torch.sigmoid(own - text)[..., None]
    torch.testing.assert_close(result[..., 5, :], share * v[..., 5, :] + (1 - share) * v[..., 12, :])


def test_samples_with_cosine_betas_from_the_highest_level() -> None:
    """Both samplers start at sigma = 2e4 and end at finite motions of the network's own scale."""
    model = denoiser().float()
    for sampler in (DDIM(10, eta=1.0), Euler(10)):
        x = sampler.sample(model, seeds=SampleSeeds(0, range(3)), condition=texts().float()).x
        assert x.shape == (3, *SHAPE) and bool(x.isfinite().all()) and float(x.abs().max()) < 10


IMAGES_ALONE = {"fdg", "swg", "m_swg", "sag", "sag_masks"}


class Models:
    """A model, the same with weights far off, and prompts."""

    def __init__(self) -> None:
        self.main, self.other, self.prompts = denoiser().float(), denoiser().float(), torch.cat([texts(), -texts()])
        with torch.no_grad():
            for parameter in self.other.parameters():
                parameter.mul_(1 + 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
        self.plain = self.sample(self.main)

    def snapshot(self, **_: Any) -> Denoiser:
        return self.other

    def sample(self, model: Denoiser) -> Tensor:
        sampler = Euler(KarrasGrid(2, sigma_min=0.3, sigma_max=5.0))
        return sampler.sample(model, seeds=SampleSeeds(0, range(3)), condition=texts().float()).x


@pytest.fixture(scope="module")
def models() -> Models:
    return Models()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_guidance_guides_or_is_for_images(models: Models, file: Path) -> None:
    for guidance in guidances_of(file).values():
        if file.stem in (*IMAGES_ALONE, *OF_TEXTS):
            with pytest.raises(ValueError, match=NO_TEXTS if file.stem in OF_TEXTS else "needs? images"):
                models.sample(guidance.resolve(models))
            continue
        change = (models.sample(guidance.resolve(models)) - models.plain).abs().max() / models.plain.abs().max()
        assert 1e-5 < float(change) < 100
    assert torch.equal(models.sample(models.main), models.plain), "the positive network has changed"


def test_every_weight_is_trained() -> None:
    model = denoiser().float()
    condition = drop_condition(texts().float(), torch.tensor([True, False, False]))
    loss = (model(motions().float(), torch.tensor([0.1, 1.0, 30.0]), condition) - 1).square().mean()
    loss.backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in model.parameters())
