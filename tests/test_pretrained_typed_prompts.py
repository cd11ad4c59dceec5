"""Typed prompts end to end: the pipeline that is called with strings, and guidances by other prompts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules import Prompts
from lightning_guide.conditioning import token_mask
from lightning_guide.denoiser import Denoiser, Trajectory
from lightning_guide.guidance import (
    ClassifierFreeGuidance,
    ConditionAnnealedGuidance,
    GaussianCondition,
    Guided,
    IndependentConditionGuidance,
    Perturbed,
)
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.pretrained import DiffusersNetwork, TextEncoders, encode_prompts
from lightning_guide.pretrained.schedulers import scheduled_sampling
from lightning_guide.samplers import Euler, Sampler
from lightning_guide.seeds import SampleSeeds

diffusers = pytest.importorskip("diffusers", reason="needs the extra `pretrained`")
pytest.importorskip("transformers", reason="needs the extra `pretrained`")
PROMPTS = ["a cat", "two dogs", "a house"]


@pytest.fixture(scope="module")
def folder(tiny_pipeline: Callable[[str], Path]) -> Path:
    return tiny_pipeline("sd")


def pipeline(folder: Path) -> Any:
    """The pipeline with a scheduler whose last level is 0."""
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    settings = dict(pipe.scheduler.config) | {"timestep_spacing": "leading"}
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(settings)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def model(folder: Path, *, negative_prompt: str | None = None, steps: int = 6) -> tuple[Denoiser, Sampler]:
    """Our denoiser with the pipeline's U-Net and encoders."""
    pipe = pipeline(folder)
    settings = json.loads(pipe.scheduler.to_json_string())
    found = scheduled_sampling(settings, steps)
    network = DiffusersNetwork.of(pipe.unet, empty_length=77)
    network.empty.copy_(TextEncoders(folder).empty(negative_prompt))
    return Preconditioned(network, found.preconditioning, sigma_data=1.0).eval(), found.sampler


@pytest.mark.parametrize("negative_prompt", [None, "ugly"])
@pytest.mark.parametrize("weight", [1.0, 3.0, 7.5])
def test_typed_prompts_give_the_latents_of_the_pipeline(
    folder: Path, weight: float, negative_prompt: str | None
) -> None:
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    options: dict[str, Any] = {"num_inference_steps": 6, "guidance_scale": weight, "negative_prompt": negative_prompt}
    options["negative_prompt"] = None if negative_prompt is None else [negative_prompt] * 3
    with torch.no_grad():
        theirs = pipeline(folder)(PROMPTS, latents=noise, output_type="latent", **options).images
    denoiser, sampler = model(folder, negative_prompt=negative_prompt)
    guided = ClassifierFreeGuidance(weight, positive=denoiser)
    x = noise * math.sqrt(1 + float(sampler.levels(guided)[0]) ** 2)
    tokens = encode_prompts(folder, PROMPTS)
    with torch.no_grad():
        *_, end = sampler.steps(guided, x, seeds=SampleSeeds(0, range(3)), condition=tokens)
    assert float((end.x - theirs).abs().max() / theirs.abs().max()) < 2e-5


def test_prompts_in_half_precision_cost_little(folder: Path, tmp_path: Path) -> None:
    """The way of configs: the model by its name, embeddings from the cache."""
    import lightning_guide as lg

    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    options: dict[str, Any] = {"num_inference_steps": 6, "guidance_scale": 7.5, "output_type": "latent"}
    with torch.no_grad():
        theirs = pipeline(folder)(PROMPTS, latents=noise, **options).images
    guided = ClassifierFreeGuidance(7.5, positive=lg.load(f"diffusers:{folder}"))
    sampler = model(folder)[1]
    x = noise * math.sqrt(1 + float(sampler.levels(guided)[0]) ** 2)
    stored = Prompts(PROMPTS, str(folder), cache=str(tmp_path)).prompts()[torch.arange(3)]
    for tokens, bound in ((encode_prompts(folder, PROMPTS), 2e-5), (stored, 1e-3)):
        with torch.no_grad():
            *_, end = sampler.steps(guided, x, seeds=SampleSeeds(0, range(3)), condition=tokens)
        assert float((end.x - theirs).abs().max() / theirs.abs().max()) < bound


class Here:
    """Models of an evaluation with three prompts."""

    def __init__(self, denoiser: Denoiser, prompts: Any) -> None:
        self.main, self.prompts = denoiser, prompts

    def snapshot(self, **_: Any) -> Denoiser:
        raise AssertionError


@pytest.fixture(scope="module")
def evaluated(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    data = Prompts(PROMPTS, str(folder), cache=str(tmp_path_factory.mktemp("cache")))
    yield Here(model(folder)[0], data.prompts())


def predict(guidance: Denoiser, condition: Tensor, *, step: int = 0) -> Tensor:
    """D at one point of a trajectory."""
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(5)) * 4
    place = Trajectory(x, SampleSeeds(0, range(3)), sigma=4.0, step=step, steps=10)
    with torch.no_grad():
        return guidance.start(place)(x, torch.tensor(4.0), condition).clean


def test_icg_takes_another_prompt_of_the_evaluation(evaluated: Here) -> None:
    main, prompts = evaluated.main, evaluated.prompts
    tokens = prompts[torch.arange(3)]
    found = predict(IndependentConditionGuidance(3.0).resolve(evaluated), tokens)
    others = prompts[SampleSeeds(0, range(3)).integers("random condition", 3)]
    positive, negative = predict(main, tokens), predict(main, others)
    torch.testing.assert_close(found, negative + 3 * (positive - negative), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found, positive, atol=1e-2)


def test_icg_with_noise_in_place_of_tokens(evaluated: Here) -> None:
    tokens = evaluated.prompts[torch.arange(3)]
    guidance = Guided([Perturbed([GaussianCondition()])], [2.0]).resolve(evaluated)
    found, positive = predict(guidance, tokens), predict(evaluated.main, tokens)
    noise = SampleSeeds(0, range(3)).normal("gaussian condition", tokens.shape[1:], torch.device("cpu"))
    negative = predict(evaluated.main, tokens.std(dim=-1, keepdim=True, correction=0) * noise)
    torch.testing.assert_close(found, negative + 2 * (positive - negative), atol=1e-4, rtol=1e-4)


def test_cads_noises_the_prompts_early_and_not_late(evaluated: Here) -> None:
    tokens = evaluated.prompts[torch.arange(3)]
    cads = ConditionAnnealedGuidance(3.0, scale=0.25, tau=(0.6, 0.9)).resolve(evaluated)
    plain = predict(ClassifierFreeGuidance(3.0).resolve(evaluated), tokens, step=8)
    torch.testing.assert_close(predict(cads, tokens, step=8), plain, atol=1e-4, rtol=1e-4)
    early = predict(cads, tokens, step=2)  # t = 0.8, gamma = 1/3
    noise = SampleSeeds(0, range(3)).normal("annealed condition", tokens.shape[1:], torch.device("cpu"))
    noisy = math.sqrt(1 / 3) * tokens + 0.25 * math.sqrt(2 / 3) * noise
    (std, mean), (own, center) = (torch.std_mean(y, dim=-1, keepdim=True, correction=0) for y in (tokens, noisy))
    annealed = (noisy - center) / own * std + mean
    expected = predict(ClassifierFreeGuidance(3.0).resolve(evaluated), annealed)
    torch.testing.assert_close(early, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(early, plain, atol=1e-2) and bool(token_mask(annealed).all())


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux", "pixart", "if"])
def test_prompts_fit_the_model_of_their_folder(name: str, tiny_pipeline: Callable[[str], Path], tmp_path: Path) -> None:
    import lightning_guide as lg

    source = tiny_pipeline(name)
    data, main = Prompts(PROMPTS, str(source), cache=str(tmp_path)), lg.load(f"diffusers:{source}")
    assert data.data_shape == main.data_shape and data.token_channels == main.token_channels
    x = torch.randn(1, main.data_shape[0], 8, 8, generator=torch.Generator().manual_seed(5)).expand(3, -1, -1, -1)
    with torch.no_grad():
        clean = main(x, torch.tensor(1.0), data.prompts()[torch.arange(3)])
        images = data.decode(clean)
    assert bool(clean.isfinite().all()) and not torch.allclose(clean[0], clean[1], atol=1e-3)
    assert images.dtype == torch.uint8 and images.shape[:2] == (3, 3)


def test_data_are_shaped_and_decoded_as_by_the_pipeline(folder: Path) -> None:
    data, pipe = Prompts(PROMPTS, f"diffusers:{folder}"), pipeline(folder)
    x = torch.randn(2, *data.data_shape, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        image = pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample
    expected = ((image / 2 + 0.5).clamp(0, 1) * 255).round()
    assert int((data.decode(x).float() - expected).abs().max()) <= 1


def test_one_prompt_alone_is_no_other_one(evaluated: Here) -> None:
    one = Here(evaluated.main, evaluated.prompts[torch.tensor([0])])
    guidance = IndependentConditionGuidance(3.0).resolve(one)
    assert isinstance(guidance, Guided)
    said = list(guidance.negatives[0].without_effect([]))  # type: ignore[union-attr]
    assert said == ["ICG draws its random prompt from 1 prompt, which is that of the samples"]


def test_samples_of_typed_prompts_do_not_depend_on_the_batch(folder: Path) -> None:
    import lightning_guide as lg

    denoiser = model(folder)[0]
    guided = lg.ClassifierFreeGuidance(3, positive=denoiser)
    tokens = lg.encode_prompts(folder, PROMPTS)
    x = lg.sample(guided, Euler(4), prompts=tokens, seed=1)
    alone = lg.sample(guided, Euler(4), prompts=tokens[:2], seed=1, batch_size=1)
    torch.testing.assert_close(x[:2], alone, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(x[0], x[1])
