"""Final latents of diffusers' pipelines, called with strings, and of our samplers on the same noise and weights.

Random weights of the real classes. Where a published scheduler ends above sigma = 0 (`set_alpha_to_one` false), the
pipeline has the setting with which both are the same computation.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser
from lightning_guide.guidance import ClassifierFreeGuidance, Clipped
from lightning_guide.preconditioning import Preconditioned, RectifiedFlow
from lightning_guide.pretrained import ControlledNetwork, DiffusersNetwork, TextEncoders
from lightning_guide.pretrained.schedulers import scheduled_sampling
from lightning_guide.seeds import SampleSeeds
from tests.tiny_pipelines import CLASSES, refill

diffusers = pytest.importorskip("diffusers", reason="needs the extra `pretrained`")

Tiny = Callable[[str], Path]
PROMPTS = ["a red fox jumps over a lazy dog, in oil, on a large canvas", "two cats: photographed at night!"]
STEPS = 6
SHAPE = (2, 4, 8, 8)
SIZES = {"time_ids": (16.0, 16.0, 0.0, 0.0, 16.0, 16.0)}  # the tiny autoencoder halves sides, the real ones divide by 8


class Stream:
    """Fresh noise of our streams for 2 samples, in place of the other library's generator."""

    def __init__(self) -> None:
        self.seeds = SampleSeeds(0, range(2))

    def __call__(self, shape: Any, **_: Any) -> Tensor:
        return self.seeds.normal("ancestral", tuple(shape[1:]), "cpu")


def load(tiny: Tiny, name: str, **scheduler: Any) -> Any:
    """The pipeline, with other settings of its scheduler."""
    pipe = getattr(diffusers, CLASSES[name]).from_pretrained(tiny(name), local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **scheduler)
    return pipe


def noise(shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def texts(folder: Path, negative: str | None) -> tuple[Tensor, Tensor]:
    """Tokens of the prompts, and what "no condition" is."""
    encoders = TextEncoders(folder)
    empty = encoders.encode([negative or ""])[0]
    return encoders.encode(PROMPTS), torch.zeros_like(empty) if encoders.drops_empty and negative is None else empty


def sample(
    pipe: Any,
    network: DiffusersNetwork,
    z: Tensor,
    condition: Tensor | None,
    weight: float = 1.0,
    *,
    guide: Callable[[Denoiser], Denoiser] | None = None,
) -> Tensor:
    """Final x of our sampler by the settings of the pipeline's scheduler, from its own start noise `z`.

    `guide`: plain model -> guided one; default: classifier-free guidance of `weight`.
    """
    settings = dict(pipe.scheduler.config) | {"_class_name": type(pipe.scheduler).__name__}
    found = scheduled_sampling(settings, STEPS, tokens=network.data_shape[1] * network.data_shape[2] // 4)
    plain = Preconditioned(network.eval(), found.preconditioning, sigma_data=1.0)
    denoiser: Denoiser = plain if weight == 1 else ClassifierFreeGuidance(weight, positive=plain)
    if guide is not None:
        denoiser = guide(plain)
    if found.clipping is not None:
        denoiser = Clipped(**asdict(found.clipping), positive=denoiser)
    first = float(found.sampler.levels(denoiser)[0])
    flow, factor = isinstance(found.preconditioning, RectifiedFlow), getattr(pipe.scheduler, "init_noise_sigma", 1.0)
    start = 1 + first if flow else math.sqrt(1 + first**2) if factor == 1 else float(factor)
    seeds = SampleSeeds(0, range(len(z)))
    *_, end = found.sampler.steps(denoiser, start * z, seeds=seeds, condition=condition)
    return end.x


def error(one: Tensor, other: Tensor) -> float:
    """Largest difference relative to the largest number."""
    assert one.shape == other.shape
    return float((one - other).abs().max() / other.abs().max())


GUIDED = [
    (name, weight, negative)
    for name in ("sd", "sdxl", "sd3", "pixart")
    for weight, negative in ((1.0, None), (5.0, None), (5.0, "blurry"))
]


@pytest.mark.parametrize(("name", "weight", "negative"), GUIDED)
def test_texts_with_and_without_guidance(tiny_pipeline: Tiny, name: str, weight: float, negative: str | None) -> None:
    pipe = load(tiny_pipeline, name, **({"set_alpha_to_one": True} if name == "sd" else {}))
    options: dict[str, Any] = {"use_resolution_binning": False} if name == "pixart" else {}
    if negative is not None:
        options["negative_prompt"] = negative if name == "pixart" else [negative] * 2
    expected = pipe(
        PROMPTS,
        guidance_scale=weight,
        latents=noise(),
        num_inference_steps=STEPS,
        height=16,
        width=16,
        output_type="latent",
        **options,
    ).images
    condition, empty = texts(tiny_pipeline(name), negative)
    network = DiffusersNetwork.of(
        pipe.unet if hasattr(pipe, "unet") else pipe.transformer,
        empty_length=len(empty),
        constants=SIZES if name == "sdxl" else None,
    )
    network.empty.copy_(empty)
    assert error(sample(pipe, network, noise(), condition, weight), expected) < 1e-4
    assert error(sample(pipe, network, noise(), condition.flip(0), weight), expected) > 3e-3  # texts matter
    if weight > 1:
        assert error(sample(pipe, network, noise(), condition, 1.1 * weight), expected) > 3e-4


@pytest.mark.parametrize(("weight", "negative"), [(1.0, None), (4.0, "blurry")])
def test_flux_with_its_guidance_and_with_a_negative_prompt(
    tiny_pipeline: Tiny, weight: float, negative: str | None
) -> None:
    pipe = load(tiny_pipeline, "flux")
    z = noise()
    packed = z.reshape(2, 4, 4, 2, 4, 2).permute(0, 2, 4, 1, 3, 5).reshape(2, 16, 16)
    options = {} if negative is None else {"negative_prompt": [negative] * 2, "true_cfg_scale": weight}
    settings = {"guidance_scale": 2.0, "num_inference_steps": STEPS, "height": 16, "width": 16}
    out = pipe(PROMPTS, latents=packed, output_type="latent", **settings, **options).images
    expected = out.reshape(2, 4, 4, 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(2, 4, 8, 8)
    condition, empty = texts(tiny_pipeline("flux"), negative)
    network = DiffusersNetwork.of(
        pipe.transformer, data_shape=(4, 8, 8), empty_length=len(empty), constants={"guidance": 2.0}
    )
    network.empty.copy_(empty)
    assert error(sample(pipe, network, z, condition, weight), expected) < 1e-4
    assert error(sample(pipe, network, z, condition.flip(0), weight), expected) > 3e-3


def test_pixart_that_is_conditioned_on_sizes(tiny_pipeline: Tiny) -> None:
    pipe = load(tiny_pipeline, "pixart")
    config = dict(pipe.transformer.config) | {"sample_size": 128, "attention_head_dim": 6, "cross_attention_dim": 12}
    pipe.transformer = refill(diffusers.PixArtTransformer2DModel.from_config(config))
    settings = {"guidance_scale": 1.0, "num_inference_steps": STEPS, "height": 16, "width": 32}
    z = noise((2, 4, 8, 16))
    expected = pipe(PROMPTS, latents=z, use_resolution_binning=False, output_type="latent", **settings).images
    condition, empty = texts(tiny_pipeline("pixart"), None)
    constants = {"resolution": (16.0, 32.0), "aspect_ratio": (0.5,)}
    network = DiffusersNetwork.of(pipe.transformer, data_shape=(4, 8, 16), empty_length=len(empty), constants=constants)
    assert error(sample(pipe, network, z, condition), expected) < 1e-4
    network.family.constants["resolution"] = (8.0, 8.0)
    network.family._copies.clear()
    assert error(sample(pipe, network, z, condition), expected) > 1e-3


@pytest.mark.parametrize("weight", [1.0, 4.0])
@pytest.mark.parametrize("cured", [False, True])
def test_dit_with_both_embeddings_of_the_time(
    tiny_pipeline: Tiny, weight: float, cured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = load(tiny_pipeline, "dit", set_alpha_to_one=True)
    if cured:
        for block in pipe.transformer.transformer_blocks:
            block.norm1.emb.time_proj.downscale_freq_shift = 0
    decoded: list[Tensor] = []
    decode = pipe.vae.decode
    monkeypatch.setattr(pipe.vae, "decode", lambda latents: decoded.append(latents) or decode(latents))  # type: ignore[func-returns-value]
    generator = torch.Generator().manual_seed(3)
    pipe([3, 7], guidance_scale=weight, generator=generator, num_inference_steps=STEPS, output_type="np")
    expected = decoded[0] * pipe.vae.config.scaling_factor
    constants = None if cured else {"downscale_freq_shift": 1.0}
    network = DiffusersNetwork.of(pipe.transformer, constants=constants)
    assert error(sample(pipe, network, noise(), torch.tensor([3, 7]), weight), expected) < 1e-4


@pytest.mark.parametrize(
    ("weight", "negative", "variance"),
    [(1.0, None, "learned_range"), (5.0, None, "fixed_small"), (5.0, "blurry", "learned_range")],
)
def test_deep_floyd(
    tiny_pipeline: Tiny, weight: float, negative: str | None, variance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = load(tiny_pipeline, "if", variance_type=variance)
    monkeypatch.setattr(inspect.getmodule(type(pipe.scheduler)), "randn_tensor", Stream())
    options = {} if negative is None else {"negative_prompt": [negative] * 2}
    expected = pipe(
        PROMPTS,
        guidance_scale=weight,
        num_inference_steps=STEPS,
        height=8,
        width=8,
        generator=torch.Generator().manual_seed(3),
        output_type="pt",
        **options,
    ).images
    condition, empty = texts(tiny_pipeline("if"), negative)
    network = DiffusersNetwork.of(pipe.unet, empty_length=len(empty))
    network.empty.copy_(empty)
    assert error(sample(pipe, network, noise((2, 3, 8, 8)), condition, weight), expected) < 1e-4
    assert error(sample(pipe, network, noise((2, 3, 8, 8)), condition.flip(0), weight), expected) > 3e-3


def test_ddpm(tiny_pipeline: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = load(tiny_pipeline, "ddpm")
    monkeypatch.setattr(inspect.getmodule(type(pipe.scheduler)), "randn_tensor", Stream())
    generator = torch.Generator().manual_seed(3)
    images = pipe(batch_size=2, generator=generator, num_inference_steps=STEPS, output_type="np").images
    ours = sample(pipe, DiffusersNetwork.of(pipe.unet), noise((2, 3, 8, 8)), None)
    expected = torch.from_numpy(images).movedim(-1, 1)
    assert 0.05 < float(expected.std()) and error((ours / 2 + 0.5).clamp(0, 1), expected) < 1e-4


def test_a_consistency_model_in_one_step(tiny_pipeline: Tiny) -> None:
    pipe = load(tiny_pipeline, "consistency")
    labels, z = torch.tensor([3, 7]), noise((2, 3, 8, 8))
    expected = pipe(batch_size=2, class_labels=labels, latents=z, num_inference_steps=1, output_type="pt").images
    settings = dict(pipe.scheduler.config) | {"_class_name": type(pipe.scheduler).__name__}
    denoiser = Preconditioned(DiffusersNetwork.of(pipe.unet), scheduled_sampling(settings, 1).preconditioning)
    with torch.no_grad():
        ours = denoiser(80.0 * z, torch.tensor(80.0), labels)
    assert error((ours / 2 + 0.5).clamp(0, 1), expected) < 1e-4


@pytest.mark.parametrize("weight", [1.0, 5.0])
def test_controlnet(tiny_pipeline: Tiny, weight: float) -> None:
    pipe = load(tiny_pipeline, "controlnet", set_alpha_to_one=True)
    image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(5))
    settings = {"guidance_scale": weight, "num_inference_steps": STEPS, "controlnet_conditioning_scale": 0.7}
    expected = pipe(PROMPTS, image=image[None], latents=noise(), output_type="latent", **settings).images
    condition, empty = texts(tiny_pipeline("sd"), None)
    network = ControlledNetwork.of(
        pipe.unet, controlnet=pipe.controlnet, image=image, scale=0.7, empty_length=len(empty)
    )
    network.empty.copy_(empty)
    assert error(sample(pipe, network, noise(), condition, weight), expected) < 1e-4
    network.scale = 0.6
    assert error(sample(pipe, network, noise(), condition, weight), expected) > 1e-3
