"""Partial fine-tuning: the mean shift against a shifted Gaussian, LoRA initialized to zero."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser
from lightning_guide.distributions.gaussian_mixture import gaussian
from lightning_guide.distributions.subspace import SubspaceGaussian
from lightning_guide.guidance import Snapshot
from lightning_guide.networks import EDM2UNet, LogDensityMLP
from lightning_guide.optimization import LowRank, MeanRefit, Shifted
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.training.losses import EDMLoss
from lightning_guide.utils.recipe import build


def unet() -> Preconditioned:
    net = EDM2UNet([1, 8, 8], model_channels=16, channel_mult=[1, 2], num_blocks=1, attention_resolutions=[4])
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim == 0:
                parameter.fill_(0.5)
    return Preconditioned(net)


class Fixed:
    """Always resolves to one model."""

    def __init__(self, model: Denoiser) -> None:
        self.main = model

    def snapshot(self, **_: object) -> Denoiser:
        return self.main


def test_a_shifted_gaussian_is_a_gaussian_with_shifted_mean(generator: torch.Generator) -> None:
    root = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    mean = torch.randn(3, generator=generator, dtype=torch.float64)
    shift = torch.tensor([1.0, -2.0, 0.5])
    shifted = Shifted(gaussian(mean, root @ root.T))
    with torch.no_grad():
        shifted.offset.copy_(shift)
    x, sigma = torch.randn(6, 3, generator=generator, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    expected = gaussian(mean + shift.double(), root @ root.T)(x, sigma)
    torch.testing.assert_close(shifted(x, sigma), expected, rtol=1e-9, atol=1e-9)
    assert [name for name, p in shifted.named_parameters() if p.requires_grad] == ["offset"]
    again = build(shifted.recipe)
    again.load_state_dict(shifted.state_dict())
    assert torch.equal(again(x, sigma), shifted(x, sigma))


def test_mean_refit_minimizes_the_score_matching_loss(generator: torch.Generator) -> None:
    model = Shifted(SubspaceGaussian(4, 2))
    clean = torch.randn(200, 4, generator=generator) + 3
    noise, sigma = torch.randn(200, 4, generator=generator), torch.full((200,), 0.8)
    noise = torch.cat([noise[:100], -noise[:100]])
    clean = torch.cat([clean[:100], clean[:100]])  # pairs with opposite noise, which cancels in the minimum
    loss = MeanRefit().at(model, clean, None, sigma, noise).objective.mean()
    (gradient,) = torch.autograd.grad(loss, model.offset)
    with torch.no_grad():
        model.offset -= gradient  # one step of SGD with rate 1
    torch.testing.assert_close(model.offset.detach(), clean.mean(0))
    matching = EDMLoss(uncertainty=False).at(model, clean, None, sigma, noise).objective.mean()
    (slope,) = torch.autograd.grad(matching, model.offset)
    assert float(slope.abs().max()) < 1e-5
    with pytest.raises(ValueError, match="the offset of a Shifted denoiser, got a SubspaceGaussian"):
        MeanRefit().at(SubspaceGaussian(4, 2), clean, None, sigma, noise)


@pytest.mark.parametrize("build_model", [unet, lambda: LogDensityMLP(width=16, dimensions=5)], ids=["unet", "mlp"])
def test_lora_is_initialized_to_zero_and_only_lora_trains(build_model: object, generator: torch.Generator) -> None:
    model = build_model()  # type: ignore[operator]
    x, sigma = torch.randn(3, *model.data_shape, generator=generator), torch.tensor([0.3, 1.0, 4.0])
    before = model(x, sigma).detach()
    adapted = LowRank(model, rank=2)
    torch.testing.assert_close(adapted(x, sigma), before)
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert trained and all(name.endswith((".up", ".down")) for name in trained)
    assert sum(p.numel() for p in trained.values()) < sum(p.numel() for p in model.parameters()) / 2
    frozen = {name: p.detach().clone() for name, p in adapted.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.Adam(trained.values(), lr=0.02)
    losses = []
    for _ in range(15):
        loss = (adapted(x, sigma) - before - 0.1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        adapted.constrain()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    parameters = dict(adapted.named_parameters())
    assert all(torch.equal(parameters[name], value) for name, value in frozen.items())
    torch.testing.assert_close(model(x, sigma), before)  # the original model is unchanged


def test_lora_supports_copies_recipes_and_references(generator: torch.Generator) -> None:
    model = LogDensityMLP(width=16, dimensions=3)
    adapted = LowRank(Snapshot(run="elsewhere"), rank=2, layers=["layers.*"]).resolve(Fixed(model))
    assert isinstance(adapted, LowRank) and adapted.data_shape == (3,)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if name.endswith(".up"):
                parameter.normal_(generator=generator)
    x, sigma = torch.randn(4, 3, generator=generator), torch.tensor(0.6)
    expected: Tensor = adapted(x, sigma)
    assert (expected - model(x, sigma)).abs().max() > 1e-3
    assert not [name for name in adapted.state_dict() if "input" in name and name.endswith(".up")]
    torch.testing.assert_close(copy.deepcopy(adapted)(x, sigma), expected)
    again = build(adapted.recipe)
    again.load_state_dict(adapted.state_dict())
    torch.testing.assert_close(again(x, sigma), expected)
    shifted = Shifted(Snapshot(run="elsewhere")).resolve(Fixed(model))
    torch.testing.assert_close(shifted(x, sigma), model(x, sigma))


def test_invalid_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="rank >= 1"):
        LowRank(LogDensityMLP(width=8), rank=0)
    with pytest.raises(ValueError, match="no layer of LogDensityMLP is called 'nothing'"):
        LowRank(LogDensityMLP(width=8), layers=["nothing"])
    with pytest.raises(ValueError, match="no layer of rank 99 or more"):
        LowRank(LogDensityMLP(width=8), rank=99)


def test_snapshots_of_older_versions_hold_the_model_and_load(generator: torch.Generator) -> None:
    """Their recipe has four options, and their layers of None are all."""
    model = LogDensityMLP(width=16, dimensions=3)
    adapted = LowRank(model, rank=2, layers=None)
    options = {"rank": 2, "scale": 1.0, "layers": None, "seed": 0}
    recipe = {"class_path": "lightning_guide.optimization.LowRank", "init_args": {"denoiser": model.recipe, **options}}
    again = build(recipe)
    assert again.state_dict().keys() == adapted.state_dict().keys() and "base" not in again.state_dict()
    again.load_state_dict(adapted.state_dict())
    x, sigma = torch.randn(4, 3, generator=generator), torch.tensor(0.6)
    torch.testing.assert_close(again(x, sigma), adapted(x, sigma))
