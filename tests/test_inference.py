"""Models with fused weights for sampling: equal results, shared parts stay shared, the original is unchanged."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_guide.compiled import Compiled
from lightning_guide.denoiser import Denoiser
from lightning_guide.distributions.gaussian_mixture import GaussianMixture
from lightning_guide.guidance import Autoguidance, PerturbedAttentionGuidance
from lightning_guide.guidance.negatives import AnnealedCondition
from lightning_guide.guidance.perturbation import Perturbed
from lightning_guide.inference import fuse_weights
from lightning_guide.networks import MPConv, MPLinear
from lightning_guide.networks.dit import DiffusionTransformer
from lightning_guide.optimization.low_rank import LowRank
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.runs.models import DryRunModels
from tests.small_networks import LABELS, SIGMA, noisy_images, trajectory, transformer, unet


def called(denoiser: Denoiser, x: Tensor) -> Tensor:
    """Return D of `x`, as a step of a trajectory."""
    return denoiser.start(trajectory())(x, SIGMA, LABELS).clean


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fused_network_gives_the_same_without_normalization(dtype: torch.dtype) -> None:
    model = unet().to(dtype)
    ready = fuse_weights(model)
    assert not any(isinstance(part, MPConv | MPLinear) for part in ready.modules())
    x = noisy_images().to(dtype)
    with torch.no_grad():
        torch.testing.assert_close(ready(x, SIGMA, LABELS), model(x, SIGMA, LABELS), rtol=1e-6, atol=1e-6)
    assert ready.recipe == model.recipe
    names = {name for name, part in model.named_modules()}
    assert names == {name for name, _ in ready.named_modules()}


def test_fused_network_has_the_same_gradients_in_x() -> None:
    model = unet()
    gradients = []
    for denoiser in (model, fuse_weights(model)):
        x = noisy_images().requires_grad_(True)
        gradients.append(torch.autograd.grad(denoiser(x, SIGMA, LABELS).square().sum(), x)[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-5)


def test_in_place_operations_change_neither_result_nor_input() -> None:
    """Without gradients a block overwrites only its own tensors."""
    model = unet()
    x = noisy_images()
    kept = x.clone()
    with torch.no_grad():
        in_place = model(x, SIGMA, LABELS)
    assert torch.equal(x, kept)
    torch.testing.assert_close(in_place, model(x, SIGMA, LABELS).detach(), rtol=1e-6, atol=1e-6)
    block = model.network.get_submodule("decoder.8x8_block0")
    features, embedding = torch.randn(2, 24, 8, 8), torch.randn(2, 16)
    kept = features.clone()
    with torch.no_grad():
        block(features, embedding)
    assert torch.equal(features, kept)


def test_fused_copy_does_not_follow_changes_of_the_original() -> None:
    model = unet()
    ready = fuse_weights(model)
    with torch.no_grad():
        before = ready(noisy_images(), SIGMA, LABELS)
        for parameter in model.parameters():
            parameter.add_(0.1)
        assert torch.equal(ready(noisy_images(), SIGMA, LABELS), before)
        assert not torch.allclose(model(noisy_images(), SIGMA, LABELS), before)
    assert not any(part.training for part in ready.modules())
    assert sum(isinstance(part, MPConv | MPLinear) for part in model.modules()) > 10


@pytest.mark.parametrize("guidance", [
    lambda: Autoguidance(transformer(), 2.0),
    lambda: Autoguidance(unet(), 2.0),
    lambda: PerturbedAttentionGuidance(2.0),
    lambda: Perturbed([AnnealedCondition()]),
], ids=["transformer", "autoguidance", "attention", "condition"])  # fmt: skip
def test_fused_guidances_give_the_same(guidance: object) -> None:
    made = guidance()  # type: ignore[operator]
    resolved = made.resolve(DryRunModels(unet(), ".")).eval()
    ready = fuse_weights(resolved)
    with torch.no_grad():
        torch.testing.assert_close(
            called(ready, noisy_images()), called(resolved, noisy_images()), rtol=1e-5, atol=2e-6
        )
    assert type(ready) is type(resolved)


def test_shared_networks_are_fused_once() -> None:
    resolved = PerturbedAttentionGuidance(2.0).resolve(DryRunModels(unet(), "."))
    networks = {id(part.network) for part in fuse_weights(resolved).modules() if isinstance(part, Preconditioned)}
    assert len(networks) == 1
    networks = {id(part.network) for part in resolved.modules() if isinstance(part, Preconditioned)}
    assert len(networks) == 1  # the resolved guidance still has its own network


def test_low_rank_additions_are_fused() -> None:
    adapted = LowRank(unet(), rank=2).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if name.endswith("up"):
                parameter.normal_(generator=torch.Generator().manual_seed(3))
        expected = adapted(noisy_images(), SIGMA, LABELS)
        assert not torch.allclose(expected, unet()(noisy_images(), SIGMA, LABELS))
        torch.testing.assert_close(fuse_weights(adapted)(noisy_images(), SIGMA, LABELS), expected, rtol=1e-5, atol=1e-6)


def test_other_networks_are_unchanged() -> None:
    model = transformer()
    ready = fuse_weights(model)
    assert isinstance(ready, Preconditioned) and isinstance(ready.network, DiffusionTransformer)
    assert ready.network is model.network


def test_compiling_does_not_change_the_original() -> None:
    for model in (unet(), transformer()):
        resolved = Autoguidance(model, 2.0).resolve(DryRunModels(model, "."))
        ready = fuse_weights(resolved, compile=True)
        assert len([part for part in ready.modules() if isinstance(part, Compiled)]) == 1
        assert not any(isinstance(part, Compiled) for part in [*model.modules(), *resolved.modules()])


def test_compile_without_networks_is_refused() -> None:
    model = GaussianMixture(torch.zeros(1, 2), torch.eye(2)[None])
    with pytest.raises(ValueError, match="compile is for denoisers with a network; a Gaussian.* has none"):
        fuse_weights(model, compile=True)
