"""A perturbed network starts at its first replaced module, with the result of one that computes everything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser, Predict
from lightning_guide.guidance import Guided, Unconditional
from lightning_guide.guidance.negatives import (
    BlurredInput,
    IdentityAttention,
    SelfAttentionGuidance,
    SkipBlocks,
    TimeStepGuidance,
)
from lightning_guide.guidance.perturbation import Perturbation, Perturbed
from lightning_guide.guidance.stages import SharedStages, stages_before
from lightning_guide.networks import MDM, DDPMpp, NCSNpp
from lightning_guide.preconditioning import EDM, Preconditioned
from lightning_guide.utils.modules import matching_names
from tests.small_networks import LABELS, SIGMA, noisy_images, randomize_weights, trajectory, transformer, unet

Tiny = Callable[[str], Path]


def ddpmpp(kind: type[DDPMpp] = DDPMpp) -> Preconditioned:
    """A DDPM++, or an NCSN++, of two levels."""
    network = kind((1, 8, 8), num_classes=4, model_channels=8, channel_mult=[1, 2], num_blocks=1)
    randomize_weights(network)
    return Preconditioned(network).eval()


BUILDERS = {"unet": unet, "transformer": transformer, "ddpmpp": ddpmpp, "ncsnpp": partial(ddpmpp, NCSNpp)}
FIRST = {
    "unet": ("decoder.4x4_in0.attention.core", "decoder.4x4_in1", "encoder.4x4_block0.attention.core"),
    "transformer": ("blocks.2.attention.core", "blocks.2", "blocks.1.attention.core"),
    "ncsnpp": ("decoder.4x4_in0.attention.core",),
    "ddpmpp": ("decoder.4x4_in0.attention.core", "decoder.4x4_in0", "decoder.4x4_in1"),
}


def replaced(name: str) -> Perturbation:
    """Identity attention for a core, nothing at all for a block."""
    return (IdentityAttention if name.endswith("core") else SkipBlocks)(layers=[name])


def started(model: Denoiser, negatives: Sequence[Denoiser], weights: Sequence[float]) -> Predict:
    """The guided model along a trajectory."""
    return Guided(negatives, weights, positive=model).start(trajectory())


def computed(model: Any, negatives: Sequence[Denoiser], x: Tensor, condition: Tensor | None) -> Counter[str]:
    """How often each stage computes something in one guided call; copies of a network share its hooks."""
    count: Counter[str] = Counter()
    for name in (name for pattern in model.network.stages for name in matching_names(model.network, pattern, "test")):
        model.network.get_submodule(name).register_forward_hook(lambda *_, name=name: count.update([name]))
    predict = started(model, negatives, [2.0] * len(negatives))
    count.clear()  # blocks were tried, whether they can be skipped
    with torch.no_grad():
        predict(x, SIGMA, condition)
    return count


def both(
    model: Denoiser, negatives: Sequence[Denoiser], x: Tensor, sigma: Tensor, condition: Tensor | None
) -> tuple[Tensor, Tensor]:
    """D under guidance by the negatives, with shared work, and from separate calls of all of them."""
    weights = [2.0 + i for i in range(len(negatives))]
    with torch.no_grad():
        shared = started(model, negatives, weights)(x, sigma, condition).clean
        pos = model(x, sigma, condition)
        apart = [negative.start(trajectory())(x, sigma, condition).clean for negative in negatives]
    return shared, pos + sum((w - 1) * (pos - neg) for w, neg in zip(weights, apart, strict=True))


@pytest.mark.parametrize("with_cfg", [False, True])
@pytest.mark.parametrize("kind", BUILDERS)
def test_the_same_result_from_fewer_stages(kind: str, with_cfg: bool) -> None:
    for name in FIRST[kind]:
        model, x = BUILDERS[kind](), noisy_images()
        negatives: list[Denoiser] = [Perturbed([replaced(name)], positive=model)]
        shared, separate = both(model, [Unconditional(model)] * with_cfg + negatives, x, SIGMA, LABELS)
        torch.testing.assert_close(shared, separate, rtol=1e-4, atol=1e-5)

        kept, left_out = stages_before(model.network, [name])
        count = computed(model, negatives, x, LABELS)
        assert kept and all(count[each] == 1 for each in kept + left_out)
        later = set(count) - set(kept) - set(left_out) - {name}
        assert later and all(count[each] == 2 for each in later)


def test_a_network_of_motions() -> None:
    network = MDM((5, 6), token_channels=4, channels=8, depth=3, heads=2, hidden=16)
    randomize_weights(network)
    model, x = Preconditioned(network).eval(), torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(1))
    texts = torch.ones(3, 1, 4)
    negatives: list[Denoiser] = [Perturbed([replaced("blocks.2.attention.core")], positive=model)]
    torch.testing.assert_close(*both(model, [Unconditional(model), *negatives], x, SIGMA, texts))
    assert computed(model, negatives, x, texts) == {"blocks.0": 1, "blocks.1": 1, "blocks.2": 2}


def test_perturbations_of_different_depth_share_what_each_can() -> None:
    model, x = unet(), noisy_images()
    later, earlier = ([SkipBlocks(layers=[f"decoder.4x4_{name}"])] for name in ("in1", "in0"))
    negatives = [Perturbed(later, positive=model), Perturbed(earlier, positive=model)]
    for ordered in (negatives, negatives[::-1]):
        torch.testing.assert_close(*both(model, ordered, x, SIGMA, LABELS))
    count = computed(model, negatives, x, LABELS)
    assert [count[name] for name in ("encoder.8x8_block0", "decoder.4x4_in0", "decoder.8x8_up")] == [1, 1, 3]


def test_the_attention_read_by_sag_is_that_of_the_positive() -> None:
    model = unet()
    blurred = BlurredInput(blur=0.2, positive=model)
    perturbed = Perturbed([IdentityAttention()], positive=model)
    together, x = Guided([blurred, perturbed], [1.5, 2.0], positive=model), noisy_images()
    with torch.no_grad():
        found = together.start(trajectory())(x, SIGMA, LABELS).clean
        sag = SelfAttentionGuidance(1.5, blur=0.2, positive=model).start(trajectory())(x, SIGMA, LABELS).clean
        pos, neg = model(x, SIGMA, LABELS), perturbed.start(trajectory())(x, SIGMA, LABELS).clean
    torch.testing.assert_close(found, sag + pos - neg)


def test_gradients_pass_through_everything() -> None:
    model, x = unet(), noisy_images().requires_grad_()
    negative = Perturbed([IdentityAttention()], positive=model)
    found = Guided([negative], [2.0], positive=model).start(trajectory())(x, SIGMA, LABELS).clean
    separate = 2 * model(x, SIGMA, LABELS) - negative.start(trajectory())(x, SIGMA, LABELS).clean
    (one,), (other,) = (torch.autograd.grad(each.square().sum(), x) for each in (found, separate))
    torch.testing.assert_close(one, other)


def test_results_are_recalled_at_the_point_of_the_positive_alone() -> None:
    model, x = unet(), noisy_images()
    negative = Perturbed([IdentityAttention()], positive=model)
    stages = SharedStages()
    with torch.no_grad():
        keeping, perturbed = stages.start(negative, model, trajectory())
        positive = keeping.start(trajectory())
        with stages.kept(x, SIGMA):
            positive(x, SIGMA, LABELS)
        assert stages.results
        separate = negative.start(trajectory())
        for other, sigma in ((x + 1, SIGMA), (x, SIGMA + 1), (x, SIGMA)):
            with stages.recalled(other, sigma):
                found = perturbed(other, sigma, LABELS).clean
            torch.testing.assert_close(found, separate(other, sigma, LABELS).clean)
        stages.forget()
        assert not stages.results


def test_nothing_is_shared_before_a_replaced_embedding_or_in_a_compiled_network() -> None:
    model = unet()
    names = TimeStepGuidance(positive=model).negatives[0].perturbations[0].chosen(model.network)  # type: ignore[union-attr]
    assert stages_before(model.network, names) == ([], [])
    assert stages_before(model.network, ["decoder.4x4_in0", *names]) == ([], [])
    model.network.compile()
    assert stages_before(model.network, ["decoder.4x4_in0"]) == ([], [])


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # inside diffusers
@pytest.mark.parametrize("name", ["ddpm", "sd", "sdxl", "if", "dit", "pixart", "sd3", "flux", "controlnet"])
def test_the_networks_of_diffusers(tiny_pipeline: Tiny, name: str) -> None:
    pytest.importorskip("diffusers", reason="needs the extra `pretrained`")
    from tests.test_pretrained_diffusers_controlnet import network as controlled
    from tests.test_pretrained_diffusers_network import condition, network

    found: Any = controlled(tiny_pipeline) if name == "controlnet" else network(tiny_pipeline, name)
    model = Preconditioned(found, EDM(1.0), sigma_data=1.0).eval()
    x = torch.randn(3, *model.data_shape, generator=torch.Generator().manual_seed(1))
    texts: list[Denoiser] = [Unconditional(model)] if found.null_condition else []
    blocks: list[Denoiser] = [Perturbed([SkipBlocks()], positive=model)]
    attention: list[Denoiser] = []
    if "attention" in found.parts:
        attention.append(Perturbed([IdentityAttention()], positive=model))
    for negatives in (texts + blocks, attention + blocks):
        shared, separate = both(model, negatives, x, SIGMA, condition(found))  # type: ignore[arg-type]
        torch.testing.assert_close(shared, separate, rtol=1e-4, atol=1e-4 * float(separate.abs().max()))
        count = computed(model, negatives, x, condition(found)).values()
        assert min(count) < max(count)
