"""A positive and its perturbed copies in one call, with the results of separate calls of everything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser, Predict, Prediction, Trajectory
from lightning_guide.guidance import Guided, Interval, Unconditional
from lightning_guide.guidance.branches import SMALL
from lightning_guide.guidance.combinations.base import Branch, Negatives, Plain
from lightning_guide.guidance.negatives import (
    AnnealedCondition,
    BlurredInput,
    IdentityAttention,
    NoisyInput,
    NoisyNoiseEmbedding,
    RandomMask,
    SamplingDropout,
    SelfAttentionGuidance,
    ShuffledTokens,
    SkipBlocks,
    StochasticSkip,
)
from lightning_guide.guidance.perturbation import Perturbation, Perturbed
from lightning_guide.guidance.stages import changed_stages, stages_of
from lightning_guide.networks import MDM, DDPMpp, NCSNpp
from lightning_guide.preconditioning import EDM, Preconditioned
from tests.small_networks import LABELS, SIGMA, noisy_images, randomize_weights, trajectory, transformer, unet

Tiny = Callable[[str], Path]


def ddpmpp(kind: type[DDPMpp] = DDPMpp) -> Preconditioned:
    """A DDPM++, or an NCSN++, of two levels."""
    network = kind((1, 8, 8), num_classes=4, model_channels=8, channel_mult=[1, 2], num_blocks=1)
    randomize_weights(network)
    return Preconditioned(network).eval()


BUILDERS: dict[str, Callable[[], Preconditioned]] = {
    "unet": unet,
    "transformer": transformer,
    "ddpmpp": ddpmpp,
    "ncsnpp": partial(ddpmpp, NCSNpp),
}
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


def computed(model: Any, negatives: Sequence[Denoiser], x: Tensor, condition: Tensor | None) -> dict[str, list[int]]:
    """Rows in each call of each stage, in units of the batch, in one guided call; copies share hooks."""
    calls: dict[str, list[int]] = {name: [] for name in stages_of(model.network)}

    def record(name: str, arguments: Any, named: Any) -> None:
        first = next(each for each in (*arguments, *named.values()) if isinstance(each, Tensor))
        calls[name].append(len(first) // len(x))

    for name in calls:
        stage = model.network.get_submodule(name)
        stage.register_forward_pre_hook(lambda _, *given, name=name: record(name, *given), with_kwargs=True)
    predict = started(model, negatives, [2.0] * len(negatives))
    for each in calls.values():  # blocks were tried, whether they can be skipped
        each.clear()
    with torch.no_grad():
        predict(x, SIGMA, condition)
    return calls


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
def test_one_call_computes_what_differs(kind: str, with_cfg: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same result as of separate calls, at once or with the branches one after another in each stage."""
    for name in FIRST[kind]:
        model, x = BUILDERS[kind](), noisy_images()
        negatives: list[Denoiser] = [Unconditional(model)] * with_cfg + [Perturbed([replaced(name)], positive=model)]
        for small in (SMALL, 0):
            monkeypatch.setattr("lightning_guide.guidance.branches.SMALL", small)
            shared, separate = both(model, negatives, x, SIGMA, LABELS)
            torch.testing.assert_close(shared, separate, rtol=1e-4, atol=1e-5)

        monkeypatch.setattr("lightning_guide.guidance.branches.SMALL", SMALL)
        calls, stages = computed(model, negatives, x, LABELS), stages_of(model.network)
        (changed,) = changed_stages(model.network, [name])
        rows = 1 + with_cfg
        assert 0 < changed < len(stages) - 1 and all(calls[each] == [rows] for each in stages[:changed])
        assert calls[stages[changed]] == [rows] + [1] * name.endswith("core")
        assert all(calls[each] == [rows + 1] for each in stages[changed + 1 :])


def test_a_network_of_motions() -> None:
    network = MDM((5, 6), token_channels=4, channels=8, depth=4, heads=2, hidden=16)
    randomize_weights(network)
    model, x = Preconditioned(network).eval(), torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(1))
    texts = torch.ones(3, 1, 4)
    negatives: list[Denoiser] = [Perturbed([replaced("blocks.2.attention.core")], positive=model)]
    torch.testing.assert_close(*both(model, [Unconditional(model), *negatives], x, SIGMA, texts))
    assert list(computed(model, negatives, x, texts).values()) == [[1], [1], [1, 1], [2]]


@pytest.mark.parametrize("small", [SMALL, 0])
def test_perturbations_of_different_depth_share_what_each_can(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_guide.guidance.branches.SMALL", small)
    model = unet()
    later, earlier = ([SkipBlocks(layers=[f"decoder.4x4_{name}"])] for name in ("in1", "in0"))
    x, names = noisy_images(), ("encoder.8x8_block0", "decoder.4x4_in0", "decoder.4x4_in1", "decoder.8x8_up")
    negatives = [Perturbed(later, positive=model), Perturbed(earlier, positive=model)]
    for ordered in (negatives, negatives[::-1], [negatives[1], Unconditional(model), negatives[0]]):
        torch.testing.assert_close(*both(model, ordered, x, SIGMA, LABELS))
    calls = computed(model, negatives, x, LABELS)
    assert [calls[name] for name in names] == [[1], [1], [2] if small else [1, 1], [3] if small else [1, 1, 1]]


def test_a_perturbation_that_is_off_takes_no_rows() -> None:
    model, x = unet(), noisy_images()
    output: Any = model.network.output
    negatives = [Perturbed([replaced(name)], positive=model) for name in FIRST["unet"][:2]]
    state = trajectory()
    batches: list[int] = []
    output.register_forward_hook(lambda _, given, __: batches.append(len(given[0])))
    predict = Guided(negatives, [Interval(3.0, 0.0, 0.5), 2.0], positive=model).start(state)
    batches.clear()  # blocks were tried, whether they can be skipped
    with torch.no_grad():
        found = predict(x, SIGMA, LABELS).clean
        assert (batches, state.evaluations) == ([2 * len(x)], 2)
        torch.testing.assert_close(found, both(model, negatives[1:], x, SIGMA, LABELS)[1])


RANDOM: dict[str, Callable[[], Perturbation]] = {
    "dropout": lambda: SamplingDropout(0.3),
    "token order": lambda: ShuffledTokens(layers=["decoder.4x4_in*"]),
    "skipped blocks": lambda: StochasticSkip(0.5),
    "attention masks": lambda: RandomMask(0.5),
    "noise embedding": lambda: NoisyNoiseEmbedding(),
    "label noise": lambda: AnnealedCondition(0.5),
}


@pytest.mark.parametrize("small", [SMALL, 0])
@pytest.mark.parametrize("kind", RANDOM)
def test_random_perturbations_draw_as_in_separate_calls(kind: str, small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every point of a step, also at another x than that of the joint call."""
    monkeypatch.setattr("lightning_guide.guidance.branches.SMALL", small)
    model, x = unet(dropout=0.1), noisy_images()
    perturbed = Perturbed([RANDOM[kind]()], positive=model)
    guided = Guided([Unconditional(model), perturbed], [1.5, 2.0], positive=model, combination=Twice())
    together, apart = guided.start(trajectory()), perturbed.start(trajectory())
    with torch.no_grad():
        for _ in range(2):
            found, expected = together(x, SIGMA, LABELS).clean, torch.zeros(())
            for at in (x, x + 1):
                pos, none = model(at, SIGMA, LABELS), model(at, SIGMA)
                expected = expected + 2.5 * pos - 0.5 * none - apart(at, SIGMA, LABELS).clean
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


class Twice(Plain):
    """The plain rule at x and at x + 1."""

    def combine(
        self, positive: Branch, negatives: Negatives, x: Tensor, sigma: Tensor, trajectory: Trajectory
    ) -> Prediction:
        here, there = (super(Twice, self).combine(positive, negatives, at, sigma, trajectory) for at in (x, x + 1))
        return Prediction(here.clean + there.clean)


def test_a_positive_that_draws_is_evaluated_apart() -> None:
    model, x = unet(), noisy_images()
    noisy = NoisyInput(0.5, positive=model)
    negative = Perturbed([IdentityAttention()], positive=noisy)
    state, expected = trajectory(), trajectory()
    with torch.no_grad():
        found = Guided([negative], [2.0], positive=noisy).start(state)(x, SIGMA, LABELS).clean
        pos, neg = (each.start(expected)(x, SIGMA, LABELS).clean for each in (noisy, negative))
    torch.testing.assert_close(found, 2 * pos - neg)
    assert state.evaluations == 2


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


def test_nothing_is_shared_with_a_replaced_embedding_or_in_a_compiled_network() -> None:
    model, x = unet(), noisy_images()
    embedding = Perturbed([NoisyNoiseEmbedding()], positive=model)
    ((_, names),) = embedding.layers()
    assert changed_stages(model.network, names) == changed_stages(model.network, ["decoder.4x4_in0", *names]) == []
    calls = computed(model, [embedding], x, LABELS)
    assert all(each == [1, 1] for each in calls.values())
    model.network.compile()
    assert changed_stages(model.network, ["decoder.4x4_in0"]) == []


@pytest.mark.parametrize("name", ["ddpm", "sd", "sdxl", "if", "dit", "pixart", "sd3", "flux", "controlnet"])
def test_the_networks_of_diffusers(tiny_pipeline: Tiny, name: str) -> None:
    pytest.importorskip("diffusers", reason="needs the extra `pretrained`")
    from tests.test_pretrained_diffusers_controlnet import network as controlled
    from tests.test_pretrained_diffusers_network import condition, network

    found: Any = controlled(tiny_pipeline) if name == "controlnet" else network(tiny_pipeline, name)
    model = Preconditioned(found, EDM(1.0), sigma_data=1.0).eval()
    count = 16 if name == "flux" else 3  # 3 x 16 is the number of its tokens
    x = torch.randn(count, *model.data_shape, generator=torch.Generator().manual_seed(1))
    given = condition(found)
    given = None if given is None else given[torch.arange(count) % len(given)]
    texts: list[Denoiser] = [Unconditional(model)] if found.null_condition else []
    blocks: list[Denoiser] = [Perturbed([SkipBlocks()], positive=model)]
    attention: list[Denoiser] = []
    if "attention" in found.parts:
        attention.append(Perturbed([IdentityAttention()], positive=model))
    for negatives in (texts + blocks, attention + blocks):
        shared, separate = both(model, negatives, x, SIGMA, given)
        torch.testing.assert_close(shared, separate, rtol=1e-4, atol=1e-4 * float(separate.abs().max()))
        rows = [sum(each) for each in computed(model, negatives, x, given).values()]
        assert rows[0] < rows[-1] == 1 + len(negatives) and max(rows) == rows[-1]
