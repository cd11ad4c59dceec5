"""Properties of every guidance whose negative is the perturbed model: one list for all of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser
from lightning_guide.guidance import Guided
from lightning_guide.guidance.negatives import (
    BlurredAttention,
    ConditionAnnealedGuidance,
    EntropyRectifyingGuidance,
    IndependentConditionGuidance,
    NoisyAttention,
    OffDiagonalMask,
    PerturbedAttentionGuidance,
    RandomMask,
    SkipAttention,
    SkipLayerGuidance,
    SmoothedEnergyGuidance,
    SoftIdentityAttention,
    StochasticSelfGuidance,
)
from lightning_guide.guidance.negatives.tpg import TokenPerturbationGuidance
from lightning_guide.guidance.negatives.tsg import TimeStepGuidance
from lightning_guide.guidance.perturbation import Perturbation, Perturbed
from lightning_guide.guidance.schedules import StepWindow
from lightning_guide.noise import KarrasGrid
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.samplers import Heun
from lightning_guide.seeds import SampleSeeds
from lightning_guide.utils.recipe import build
from tests.small_networks import LABELS, NETWORKS, SIGMA, noisy_images, trajectory, transformer

Preset = Callable[..., Guided]


def by(perturbation: Callable[..., Perturbation]) -> Preset:
    """Guidance by a perturbation that has no preset of its own."""

    def preset(weight: float = 2.0, *, positive: Denoiser | None = None, **options: Any) -> Guided:
        combination = options.pop("combination", None)
        negative = Perturbed([perturbation(**options)], positive=positive)
        return Guided([negative], [weight], positive=positive, combination=combination)

    return preset


ABLATION = (BlurredAttention, NoisyAttention, OffDiagonalMask, RandomMask, SkipAttention, SoftIdentityAttention)
ATTENTION: list[Preset] = [
    EntropyRectifyingGuidance,
    PerturbedAttentionGuidance,
    SmoothedEnergyGuidance,
    *map(by, ABLATION),
]
PERTURBED: list[Preset] = [
    *ATTENTION,
    SkipLayerGuidance,
    StochasticSelfGuidance,
    TimeStepGuidance,
    TokenPerturbationGuidance,
]
PRESETS: list[Preset] = [*PERTURBED, IndependentConditionGuidance]

both_networks = pytest.mark.parametrize("kind", NETWORKS)
every_preset = pytest.mark.parametrize("preset", PRESETS)
every_perturbed = pytest.mark.parametrize("preset", PERTURBED)


def run(denoiser: Denoiser, labels: Tensor | None = LABELS, *, x: Tensor | None = None) -> tuple[Tensor, int]:
    """The prediction at a step inside every window, and its evaluations."""
    place = trajectory()
    with torch.no_grad():
        clean = denoiser.start(place)(place.x if x is None else x, SIGMA, labels).clean
    return clean, place.evaluations


@both_networks
@every_preset
def test_the_line_and_its_evaluations(kind: str, preset: Preset) -> None:
    """w = 1 is the positive to the bit for one evaluation; else D_neg + w (D - D_neg), two, and the positive stays."""
    model = NETWORKS[kind]()
    (plain, one), (off, calls) = run(model), run(preset(1.0, positive=model))
    assert torch.equal(off, plain) and one == calls == 1
    alive = preset(2.0, positive=model).start(trajectory())
    negative, _ = run(preset(0.0, positive=model))
    assert (negative - plain).abs().max() > 1e-3 * plain.abs().max()  # the perturbation has an effect
    guided, calls = run(preset(3.0, positive=model))
    torch.testing.assert_close(guided, negative + 3 * (plain - negative), rtol=1e-4, atol=1e-4)
    assert calls == 2
    assert torch.equal(run(model)[0], plain)
    with torch.no_grad():
        torch.testing.assert_close(
            alive(noisy_images(), SIGMA, LABELS).clean, 2 * plain - negative, rtol=1e-4, atol=1e-4
        )
    assert torch.equal(run(model)[0], plain)


@every_perturbed
def test_the_negative_receives_the_condition(preset: Preset) -> None:
    """Defect 2 of the widely used library: its weak branch was the unconditional one."""
    model = transformer()
    negative = preset(0.0, positive=model)
    same, other, none = (run(negative, labels)[0] for labels in (LABELS, (LABELS + 1) % 4, None))
    assert not torch.allclose(same, other) and not torch.allclose(same, none)


@both_networks
@every_perturbed
def test_it_works_without_labels_and_other_guidance(kind: str, preset: Preset) -> None:
    """Defect 3 of the widely used library: without classifier-free guidance it had no perturbation."""
    model = NETWORKS[kind](num_classes=0)
    plain, _ = run(model, None)
    negative, _ = run(preset(0.0, positive=model), None)
    assert (negative - plain).abs().max() > 1e-3 * plain.abs().max()


@pytest.mark.parametrize("preset", [*PRESETS, ConditionAnnealedGuidance])
def test_a_sample_depends_on_its_seed_and_number_alone(preset: Preset) -> None:
    model = transformer(depth=2)
    sampler = Heun(KarrasGrid(2, sigma_min=0.2, sigma_max=3.0))

    def sample(indices: list[int]) -> Tensor:
        condition = torch.tensor(indices) % 4
        with torch.no_grad():
            guided = preset(1.5, positive=model)
            return sampler.sample(guided, seeds=SampleSeeds(0, indices), condition=condition).x

    batch = sample([4, 9, 2])
    assert torch.equal(batch, sample([4, 9, 2]))
    before = torch.get_rng_state()
    torch.testing.assert_close(sample([2, 4]), batch[[2, 0]], rtol=1e-3, atol=1e-3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("preset", [*PRESETS, ConditionAnnealedGuidance])
def test_its_recipe_rebuilds_it(preset: Preset) -> None:
    guided = preset(2.5)
    recipe = json.loads(json.dumps(guided.recipe))
    again = build(recipe)
    assert type(again) is type(guided) and again.recipe == guided.recipe
    assert again.weights == [2.5]


@pytest.mark.parametrize("preset", [*PERTURBED, ConditionAnnealedGuidance])
def test_layers_reach_the_perturbation(preset: Preset) -> None:
    model = NETWORKS["transformer"]()
    with pytest.raises(ValueError, match="no layer of DiffusionTransformer is called 'nowhere'"):
        run(preset(2.0, layers=["nowhere"], positive=model))


@every_perturbed
def test_the_combination_is_used(preset: Preset) -> None:
    model = transformer()
    plain, _ = run(model)
    guided, calls = run(preset(2.0, positive=model, combination=StepWindow(0.5, 1.0)))  # the step is 1 of 4
    assert torch.equal(guided, plain) and calls == 1


@every_preset
def test_other_precisions(preset: Preset) -> None:
    model = transformer()
    full, _ = run(preset(2.0, positive=model))
    with torch.autocast("cpu", torch.bfloat16):
        half, _ = run(preset(2.0, positive=model))
    double, _ = run(preset(2.0, positive=model.double()), x=noisy_images().double())
    assert full.dtype == half.dtype == torch.float32
    assert float((half - full).norm() / full.norm()) < 0.1
    torch.testing.assert_close(double.float(), full, rtol=1e-3, atol=1e-3)


@every_preset
def test_sequences_and_points_or_a_clear_error(preset: Preset) -> None:
    for shape in ((2, 12), (6,)):
        model: Preconditioned = transformer(data_shape=shape)
        x = torch.randn(3, *shape)
        guided: Any = preset(2.0, positive=model)
        if preset is SmoothedEnergyGuidance:
            with pytest.raises(ValueError, match="SEG needs a 2D token grid; this network has no grid"):
                run(guided, x=x)
        else:
            clean, calls = run(guided, x=x)
            assert clean.shape == x.shape and clean.isfinite().all() and calls == 2
