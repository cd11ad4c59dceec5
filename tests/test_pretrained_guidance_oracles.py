"""Guidance of diffusers' pipelines and guiders against ours, on the same weights and noise; where they differ, and why.

The library's scales add to the guided prediction: s times (D - D_neg) is our weight 1 + s.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser, Prediction, Trajectory
from lightning_guide.guidance import Guided, Interval, Perturbed, Unconditional
from lightning_guide.guidance.combinations import AdaptiveProjection, Combination, Rescale, Tangential, ZeroStar
from lightning_guide.guidance.negatives import (
    IdentityAttention,
    PerturbedAttentionGuidance,
    SelfAttentionGuidance,
    SkipBlocks,
)
from lightning_guide.pretrained import DiffusersNetwork
from lightning_guide.seeds import SampleSeeds
from tests.test_pretrained_pipelines import PROMPTS, SIZES, STEPS, error, load, noise, sample, texts

diffusers = pytest.importorskip("diffusers", reason="needs the extra `pretrained`")

Tiny = Callable[[str], Path]


def parts(tiny: Tiny, name: str, kind: str, **others: Any) -> Any:
    """Pipeline `kind` of the parts of the tiny pipeline `name`."""
    pipe = load(tiny, name, **({"set_alpha_to_one": True} if name == "sd" else {}))
    optional = {"safety_checker": None, "feature_extractor": None} if name == "sd" else {}
    known = {key: value for key, value in pipe.components.items() if key not in ("feature_extractor", "image_encoder")}
    found = getattr(diffusers, kind)(**known | optional | others)
    found.set_progress_bar_config(disable=True)
    return found


def run(pipe: Any, scale: float, **options: Any) -> Tensor:
    """Final latents of the pipeline."""
    settings = {"num_inference_steps": STEPS, "height": 16, "width": 16, "output_type": "latent"}
    found: Tensor = pipe(PROMPTS, guidance_scale=scale, latents=noise(), **settings, **options).images
    return found


def ours(tiny: Tiny, name: str, pipe: Any, guide: Callable[[Denoiser], Denoiser]) -> Tensor:
    """Our final latents with the model, the scheduler and the texts of the pipeline."""
    condition, empty = texts(tiny(name), None)
    model = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    network = DiffusersNetwork.of(model, empty_length=len(empty), constants=SIZES if name == "sdxl" else None)
    network.empty.copy_(empty)
    return sample(pipe, network, noise(), condition, guide=guide)


def perturbed(scale: float, s: float, layers: list[str] | None) -> Callable[[Denoiser], Denoiser]:
    """Classifier-free guidance and PAG as in its paper: u + g (c - u) + s (c - p)."""

    def guide(plain: Denoiser) -> Denoiser:
        if scale == 1:
            return PerturbedAttentionGuidance(1 + s, layers=layers, positive=plain)
        negatives = [Unconditional(plain), Perturbed([IdentityAttention(layers=layers)], positive=plain)]
        return Guided(negatives, [scale, 1 + s], positive=plain)

    return guide


@pytest.mark.parametrize(
    ("name", "kind", "where", "layers", "scale"),
    [
        ("sd", "StableDiffusionPAGPipeline", "mid", None, 1.0),
        ("sd", "StableDiffusionPAGPipeline", "mid", None, 5.0),
        ("sd", "StableDiffusionPAGPipeline", "down_blocks.0", ["model.down_blocks.0.*.attn1.core"], 5.0),
        ("sdxl", "StableDiffusionXLPAGPipeline", "mid", None, 5.0),
    ],
)
def test_perturbed_attention(
    tiny_pipeline: Tiny, name: str, kind: str, where: str, layers: list[str] | None, scale: float
) -> None:
    pipe = parts(tiny_pipeline, name, kind, pag_applied_layers=where)
    expected = run(pipe, scale, pag_scale=3.0)
    assert error(ours(tiny_pipeline, name, pipe, perturbed(scale, 3.0, layers)), expected) < 1e-4
    assert error(ours(tiny_pipeline, name, pipe, perturbed(scale, 2.0, layers)), expected) > 1e-3


@pytest.mark.parametrize("normalized", [False, True])
def test_perturbed_joint_attention(tiny_pipeline: Tiny, normalized: bool) -> None:
    """The library leaves out the norms of queries and keys of Stable Diffusion 3.5, in the unperturbed model too."""
    kind, before = "StableDiffusion3PAGPipeline", load(tiny_pipeline, "sd3").transformer
    transformer = before
    if not normalized:
        transformer = type(before).from_config(dict(before.config) | {"qk_norm": None})
        transformer.load_state_dict({k: v for k, v in before.state_dict().items() if ".norm_" not in k})
    pipe = parts(tiny_pipeline, "sd3", kind, pag_applied_layers=["blocks.1"], transformer=transformer.eval())
    expected = run(pipe, 5.0, pag_scale=3.0)
    found = error(ours(tiny_pipeline, "sd3", pipe, perturbed(5.0, 3.0, None)), expected)
    assert found > 1e-2 if normalized else found < 1e-4


def test_skipped_blocks(tiny_pipeline: Tiny) -> None:
    pipe = parts(tiny_pipeline, "sd3", "StableDiffusion3Pipeline")
    window = {"skip_layer_guidance_start": 0.01, "skip_layer_guidance_stop": 0.6}  # steps 1 to 3 of 6
    expected = run(pipe, 5.0, skip_guidance_layers=[1], skip_layer_guidance_scale=2.8, **window)

    def guide(plain: Denoiser) -> Denoiser:
        from lightning_guide.pretrained.schedulers import scheduled_sampling

        settings = dict(pipe.scheduler.config) | {"_class_name": type(pipe.scheduler).__name__}
        levels = scheduled_sampling(settings, STEPS).sampler.levels(plain).tolist()
        skipped = Perturbed([SkipBlocks(layers=["model.transformer_blocks.1"])], positive=plain)
        weights = [5.0, Interval(1 + 2.8, low=levels[4], high=levels[1])]
        return Guided([Unconditional(plain), skipped], weights, positive=plain)

    assert error(ours(tiny_pipeline, "sd3", pipe, guide), expected) < 1e-4


def test_self_attention_guidance(tiny_pipeline: Tiny) -> None:
    """Its blur has 9 taps and sigma = 1 in latents of any size; ours are fractions of the side, here of 8."""
    pipe = parts(tiny_pipeline, "sd", "StableDiffusionSAGPipeline")
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    expected = run(pipe, 1.0, sag_scale=0.75)
    guide = lambda plain: SelfAttentionGuidance(1.75, blur=1 / 8, reach=1 / 2, positive=plain)  # noqa: E731
    assert error(ours(tiny_pipeline, "sd", pipe, guide), expected) < 1e-4
    assert error(ours(tiny_pipeline, "sd", pipe, lambda plain: plain), expected) > 1e-3


# Guiders: rules for two predictions

SIGMA = 1.7


def predictions() -> tuple[Tensor, Tensor, Tensor]:
    """Samples x, D with and without a condition."""
    x, pos, neg = torch.randn(3, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    return SIGMA * x, pos, 0.5 * pos + neg


def combined(combination: Combination, weight: float) -> Tensor:
    """Our guided D."""
    x, pos, neg = predictions()
    trajectory = Trajectory(x=x, seeds=SampleSeeds(0, range(2)), sigma=SIGMA, steps=10)
    trajectory.step = 3
    branches = lambda *_: Prediction(pos), [(weight, lambda *_: Prediction(neg))]
    return combination.combine(*branches, x, torch.tensor(SIGMA).double(), trajectory).clean


def guider(kind: str, pos: Tensor, neg: Tensor, **options: Any) -> Tensor:
    """The library's guided prediction."""
    found = getattr(diffusers.guiders, kind)(**options)
    found.set_state(3, 10, torch.tensor(500.0))
    result: Tensor = found.forward(pos, neg).pred
    return result


def as_noise(D: Tensor) -> Tensor:
    return (predictions()[0] - D) / SIGMA


def test_guiders_that_agree() -> None:
    _, pos, neg = predictions()
    apg = guider(
        "AdaptiveProjectedGuidance",
        pos,
        neg,
        guidance_scale=2.0,
        eta=0.0,
        adaptive_projected_guidance_rescale=3.0,
        use_original_formulation=True,
    )
    torch.testing.assert_close(combined(AdaptiveProjection(eta=0.0, norm_threshold=3.0), 3.0), apg)
    rescaled = guider("ClassifierFreeGuidance", pos, neg, guidance_scale=3.0, guidance_rescale=0.7)
    torch.testing.assert_close(combined(Rescale(0.7), 3.0), rescaled)
    noise_guided = guider("TangentialClassifierFreeGuidance", as_noise(pos), as_noise(neg), guidance_scale=3.0)
    torch.testing.assert_close(as_noise(combined(Tangential(), 3.0)), noise_guided, rtol=1e-4, atol=1e-4)
    velocity = guider("ClassifierFreeZeroStarGuidance", as_noise(pos) - pos, as_noise(neg) - neg, guidance_scale=3.0)
    found = combined(ZeroStar(), 3.0)
    torch.testing.assert_close(as_noise(found) - found, velocity, rtol=1e-5, atol=1e-5)


def test_guiders_that_act_on_the_output_of_the_network_differ_for_noise() -> None:
    """`Rescale` is in D, the rescaling of the library in whatever the network predicts."""
    _, pos, neg = predictions()
    rescaled = guider("ClassifierFreeGuidance", as_noise(pos), as_noise(neg), guidance_scale=3.0, guidance_rescale=0.7)
    assert not torch.allclose(as_noise(combined(Rescale(0.7), 3.0)), rescaled, atol=0.1)


def test_adaptive_projection_of_the_library_starts_from_the_negative() -> None:
    """Its default adds w times the update to the prediction without a condition; the paper (w - 1) times to D."""
    _, pos, neg = predictions()
    options = {"guidance_scale": 3.0, "adaptive_projected_guidance_rescale": 0.0}
    plain = guider("AdaptiveProjectedGuidance", pos, neg, eta=1.0, **options)
    torch.testing.assert_close(combined(AdaptiveProjection(eta=1.0), 3.0), plain)  # where nothing is projected
    projected = guider("AdaptiveProjectedGuidance", pos, neg, eta=0.0, **options)
    right = combined(AdaptiveProjection(eta=0.0), 3.0)
    assert not torch.allclose(projected, right, atol=0.1)

    along = pos / pos.square().sum((1, 2, 3), keepdim=True).sqrt()
    difference = pos - neg
    orthogonal = difference - (difference * along).sum((1, 2, 3), keepdim=True) * along
    torch.testing.assert_close(projected, neg + 3 * orthogonal)
    torch.testing.assert_close(right, pos + 2 * orthogonal)


def test_perturbed_attention_guider_never_acts_in_the_first_step() -> None:
    found = diffusers.guiders.PerturbedAttentionGuidance(
        1.0, perturbed_guidance_layers=[1], perturbed_guidance_start=0.0, perturbed_guidance_stop=1.0
    )
    calls = []
    for step in range(3):
        found.set_state(step, 10, torch.tensor(500.0))
        calls.append(found.num_conditions)
    assert calls == [1, 2, 2]


def test_magnitude_aware_guider_takes_no_images() -> None:
    _, pos, neg = predictions()
    with pytest.raises(RuntimeError):
        guider("MagnitudeAwareGuidance", pos, neg)
