"""Latent models whole: evaluation, energies, rewards and gradient guidance look through the real autoencoder class."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules.stored_latents import INVENTORY, check_compatibility
from lightning_guide.evaluation.measurement_fit import MeasurementFit
from lightning_guide.guidance import (
    DAPS,
    DDNM,
    DDRM,
    DPS,
    MMPS,
    MPGD,
    TMPD,
    DiffPIR,
    FreeDoM,
    LookAhead,
    LossGuidedDiffusion,
    PiGDM,
    RePaint,
)
from lightning_guide.networks import EDM2UNet
from lightning_guide.noise import KarrasGrid
from lightning_guide.objectives import Decoded, Downsampled, Measurement, NetworkDistance, SquaredDistance, TextMatch
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.pretrained import DiffusersVAE, LatentSpace
from lightning_guide.samplers import Euler
from lightning_guide.seeds import SampleSeeds
from tests.small_networks import save_autoencoder

pytest.importorskip("diffusers", reason="needs the autoencoder class of diffusers, which is missing")

SAMPLER = Euler(KarrasGrid(6, sigma_min=0.02, sigma_max=10.0))


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> LatentSpace:
    """A space of 4 channels whose random autoencoder doubles the sides."""
    folder = tmp_path_factory.mktemp("vae")
    save_autoencoder(folder)
    return LatentSpace(DiffusersVAE(str(folder), lowest=-1.0), mean=0.1, std=1 / (2 * 0.18215))


def model() -> Preconditioned:
    """A small network on latents (4, 8, 8)."""
    torch.manual_seed(1)
    network = EDM2UNet(
        [4, 8, 8], num_classes=0, model_channels=8, channel_mult=[1], num_blocks=1, attention_resolutions=[]
    )
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 0:
                parameter.fill_(0.5)
    return Preconditioned(network).eval()


def draw(guidance: torch.nn.Module) -> Tensor:
    return SAMPLER.sample(guidance, seeds=SampleSeeds(0, range(2))).x  # type: ignore[arg-type]


def test_images_are_those_of_the_autoencoder_of_the_latents(space: LatentSpace) -> None:
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    z = x / 0.18215 + 0.1
    assert space.vae is not None
    images = space.vae.decode(z)
    torch.testing.assert_close(space(x), 2 * images - 1, rtol=1e-4, atol=1e-5)
    assert space.decode(x).dtype == torch.uint8 and space.decode(x).shape == (3, 3, 16, 16)
    assert torch.equal(space.decode(x), (((space(x).clip(-1, 1)) + 1) * 127.5).round().to(torch.uint8))
    torch.testing.assert_close(space.encode(z), x, rtol=1e-4, atol=1e-5)
    small = LatentSpace(space.vae, 0.1, 1 / (2 * 0.18215), decode_batch=2)
    torch.testing.assert_close(small(x), space(x), rtol=1e-5, atol=1e-6)


def test_large_latents_are_decoded_in_tiles(space: LatentSpace) -> None:
    whole: Any = space.vae
    tiled = DiffusersVAE(whole.path, lowest=-1.0, tile=8)
    z = torch.randn(2, 4, 16, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(tiled.decode(z[..., :8, :8]), whole.decode(z[..., :8, :8]))  # one tile
    found, expected = tiled.decode(z), whole.decode(z)
    own = copy.deepcopy(whole.network())
    own.enable_tiling()
    own.tile_latent_min_size, own.tile_sample_min_size = 8, 16
    assert torch.equal(found, (own.decode(z).sample + 1) / 2)
    assert found.shape == expected.shape and not torch.equal(found, expected)
    assert (found - expected).square().mean() < 0.6 * expected.var()  # each tile has its own normalization
    assert torch.equal(tiled.encode(found), whole.encode(found))  # encoding is not tiled
    at = z.clone().requires_grad_()
    tiled.decode(at).sum().backward()
    assert at.grad is not None and bool(at.grad.isfinite().all()) and at.grad.any()
    for tile in (0, 6):
        with pytest.raises(ValueError, match=f"tile is {tile}; expected a multiple of 4"):
            DiffusersVAE(whole.path, tile=tile)


def test_tiles_do_not_make_another_autoencoder(space: LatentSpace, tmp_path: Path) -> None:
    whole: Any = space.vae
    settings = {"vae": whole.recipe, "size": 16}
    del settings["vae"]["init_args"]["tile"]  # of an older version
    (tmp_path / INVENTORY).write_text(json.dumps({"settings": settings, "mean": [0.0] * 4, "std": [0.5] * 4}))
    for vae, count in ((whole, 0), (DiffusersVAE(whole.path, lowest=-1.0, tile=8), 0), (DiffusersVAE(whole.path), 1)):
        assert len(check_compatibility(tmp_path, vae, [0.0] * 4, [0.5] * 4)) == count


def gradient(space: LatentSpace, x: Tensor) -> tuple[Tensor, int]:
    """Gradient of a function of images, and how many numbers were kept for it."""
    at, kept = x.clone().requires_grad_(), 0

    def pack(saved: Tensor) -> Tensor:
        nonlocal kept
        kept += saved.numel()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        value = space(at).square().sum()
    (found,) = torch.autograd.grad(value, at)
    return found, kept


def test_gradients_recompute_the_decoder_with_the_same_result(space: LatentSpace) -> None:
    whole: Any = space.vae
    own = copy.deepcopy(space)
    own.vae = copy.deepcopy(whole)  # type: ignore[assignment]
    own.vae.network().disable_gradient_checkpointing()
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    small = LatentSpace(whole, 0.1, 1 / (2 * 0.18215), decode_batch=1)
    (expected, stored), (blocks, fewer), (chunks, fewest) = (gradient(each, x) for each in (own, space, small))
    torch.testing.assert_close(blocks, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(chunks, expected, rtol=1e-4, atol=1e-5)
    assert fewer < 0.5 * stored and fewest < 0.5 * fewer, (stored, fewer, fewest)


def test_a_decoder_in_half_precision_has_the_gradient_in_full(space: LatentSpace) -> None:
    whole: Any = space.vae
    half = LatentSpace(DiffusersVAE(whole.path, lowest=-1.0, dtype="bfloat16"), 0.1, 1 / (2 * 0.18215), decode_batch=2)
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    images, expected = half(x), space(x)
    assert images.dtype == torch.float32 and not torch.equal(images, expected)
    torch.testing.assert_close(images, expected, rtol=0.05, atol=0.05)
    found, reference = gradient(half, x)[0], gradient(space, x)[0]
    assert found.dtype == torch.float32 and torch.cosine_similarity(found.flatten(), reference.flatten(), 0) > 0.99
    mean = half.vae.encode(expected.clamp(-1, 1) / 2 + 0.5)  # type: ignore[union-attr]
    assert mean.dtype == torch.float32
    with pytest.raises(ValueError, match="dtype is 'float16'; expected float32 or bfloat16"):
        DiffusersVAE(whole.path, dtype="float16")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"decodes latents \(4, h, w\), got \(16, 8, 8\)"):
        space(torch.zeros(1, 16, 8, 8))


def test_energy_of_decoded_latents_guides(space: LatentSpace) -> None:
    energy = Decoded(SquaredDistance(0.8), space)
    plain, guided = draw(model()), draw(DPS(energy, 0.5, positive=model()))
    with torch.no_grad():
        assert float(energy(guided).mean()) < float(energy(plain).mean())


def test_energies_with_references_of_images_guide_latents(space: LatentSpace) -> None:
    """References have the shape of images, not of the latents of the trajectory."""
    energy = NetworkDistance(torch.nn.AvgPool2d(4), torch.rand(2, 3, 16, 16) * 2 - 1)
    assert bool(draw(DPS(Decoded(energy, space), 0.3, positive=model())).isfinite().all())


def test_methods_by_gradients_meet_measurements_of_decoded_latents(space: LatentSpace) -> None:
    measurement = Measurement(Downsampled(2), noise=0.1, truth=torch.full((1, 3, 16, 16), 0.5))
    energy, misfits = Decoded(measurement, space), []
    for guided in (
        DPS(energy, 0.0, positive=model()),
        DPS(energy, 0.3, positive=model()),
        FreeDoM(energy, 0.3, positive=model()),
        LossGuidedDiffusion(energy, 10.0, draws=2, positive=model()),
        MPGD(energy, 0.3, positive=model()),
    ):
        end = SAMPLER.sample(guided, seeds=SampleSeeds(0, range(2)))
        fit = MeasurementFit([guided])
        fit.add(end, 2)
        misfits.append(fit.compute()["misfit"])
    assert max(misfits[1:]) < misfits[0] - 0.1, misfits


@pytest.mark.parametrize("method", [PiGDM, TMPD, MMPS, DDNM, DDRM, DiffPIR, DAPS, RePaint])
def test_linear_methods_refuse_measurements_of_decoded_latents(space: LatentSpace, method: Any) -> None:
    """In one sentence before the first step: images do not have the shape of latents."""
    images, seen = torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 8, 8)
    for given in (Measurement(Downsampled(2), images), Measurement(Downsampled(2), observed=seen)):
        with pytest.raises(ValueError, match=r"3, .* expected .N, .4, .*; a model of latents .* by DPS.Decoded"):
            draw(method(given, positive=model()))
    with pytest.raises(ValueError, match="measurement is a Decoded; expected a Measurement"):
        method(Decoded(Measurement(Downsampled(2), images), space))


def test_look_ahead_takes_the_gradient_through_the_decoder(space: LatentSpace) -> None:
    plain = draw(model())
    gradient = torch.ones(3, 16, 16) / (3 * 16 * 16)
    mean = float(space(plain).mean())
    guided = draw(LookAhead(decoder=space, gradient=gradient, target=mean + 3.0, positive=model()))
    assert float(space(guided).mean()) > mean + 0.02


def test_decoders_without_normalization_and_images_without_decoder_are_refused(space: LatentSpace) -> None:
    x = torch.zeros(1, 4, 8, 8)
    assert space.vae is not None
    with pytest.raises(ValueError, match="name a LatentSpace with this vae as the decoder"):
        Decoded(SquaredDistance(0.0), space.vae)(x)
    with pytest.raises(ValueError, match=r"images of 1 or 3 channels, got x of shape \(4, 8, 8\); latents are decoded"):
        TextMatch("a red car", model="ViT-B-32", weights=None)(x)
    with pytest.raises(ValueError, match="4 channels, got x of shape"):
        LatentSpace(space.vae)(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="by its vae, which is None"):
        LatentSpace(None)(x)
