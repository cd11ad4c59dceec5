"""Perturbed networks: they share only the parameters, add up, compile, and nest."""

from __future__ import annotations

import copy
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_guide.denoiser import Trajectory
from lightning_guide.guidance import Guided, Main, Unconditional
from lightning_guide.guidance.negatives import (
    AnnealedCondition,
    BlurredQueries,
    IdentityAttention,
    PerturbedAttentionGuidance,
    RandomMask,
    ScaledQueries,
    SkipBlocks,
    SmoothedEnergyGuidance,
    StochasticSkip,
)
from lightning_guide.guidance.negatives.tpg import ShuffledTokens
from lightning_guide.guidance.negatives.tsg import NoisyNoiseEmbedding
from lightning_guide.guidance.perturbation import Perturbation, Perturbed, Replacement
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.utils.modules import shallow_clone
from tests.small_networks import LABELS, NETWORKS, SIGMA, noisy_images, trajectory, transformer, unet

CORE = {"unet": "decoder.4x4_in0.attention.core", "transformer": "blocks.2.attention.core"}


def run(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(noisy_images(), SIGMA, LABELS)


# A separate module tree


@pytest.mark.parametrize("kind", NETWORKS)
def test_it_shares_only_the_parameters(kind: str) -> None:
    model = NETWORKS[kind]()
    perturbed = Perturbed([IdentityAttention()], positive=model).network(trajectory())
    mine, theirs = dict(model.named_parameters()), dict(perturbed.named_parameters())
    assert mine.keys() == theirs.keys() and all(mine[name] is theirs[name] for name in mine)
    assert not set(model.modules()) & set(perturbed.modules())
    buffers = list(zip(model.buffers(), perturbed.buffers(), strict=True))
    assert buffers and all(torch.equal(a, b) and a.data_ptr() != b.data_ptr() for a, b in buffers)
    containers = [
        {id(value) for module in tree.modules() for value in vars(module).values() if isinstance(value, dict | set)}
        for tree in (model, perturbed)
    ]
    assert not containers[0] & containers[1]


@pytest.mark.parametrize("kind", NETWORKS)
def test_changes_of_negative_and_positive_do_not_reach_each_other(kind: str) -> None:
    model = NETWORKS[kind]()
    plain = run(model)
    perturbed = Perturbed([BlurredQueries(1.0)], positive=model).network(trajectory())
    before = run(perturbed)
    calls: list[str] = []
    handles = [
        tree.network.embedding_noise.register_forward_hook(lambda *_, who=who: calls.append(who))
        for who, tree in (("positive", model), ("negative", perturbed))
    ]
    assert torch.equal(run(model), plain) and calls == ["positive"]
    assert torch.equal(run(perturbed), before) and calls == ["positive", "negative"]
    for handle in handles:
        handle.remove()
    perturbed.train()
    assert not any(module.training for module in model.modules())
    for buffer in perturbed.buffers():
        buffer.add_(1)
    perturbed.network.embedding_noise = nn.Identity()
    perturbed.network.register_parameter("more", nn.Parameter(torch.ones(())))
    assert torch.equal(run(model), plain) and not hasattr(model.network, "more")
    del perturbed
    assert torch.equal(run(model), plain)


def test_it_follows_the_parameters_and_passes_gradients_to_them() -> None:
    model = transformer()
    alive = Perturbed([IdentityAttention()], positive=model).network(trajectory())
    before = run(alive)
    with torch.no_grad():
        model.network.get_parameter("blocks.0.mlp.fc1.weight").mul_(1.5)
    after = run(alive)
    assert not torch.allclose(after, before)
    assert torch.equal(after, run(Perturbed([IdentityAttention()], positive=model).network(trajectory())))
    alive(noisy_images(), SIGMA, LABELS).square().sum().backward()
    gradient = model.network.get_parameter("blocks.2.attention.qkv.weight").grad
    assert gradient is not None and gradient[32:].abs().max() > 0  # values
    assert torch.count_nonzero(gradient[:32]) == 0  # queries and keys, which identity attention leaves out


@pytest.mark.parametrize("kind", NETWORKS)
def test_simultaneous_perturbations_are_independent(kind: str) -> None:
    model = NETWORKS[kind]()
    plain = run(model)
    ways: list[list[Perturbation]] = [[IdentityAttention()], [BlurredQueries()], [SkipBlocks()]]
    alone = [run(Perturbed(way, positive=model).network(trajectory())) for way in ways]
    alive = [Perturbed(way, positive=model).network(trajectory()) for way in ways]
    assert torch.equal(run(model), plain)
    for _ in range(2):
        for network, expected in zip(alive, alone, strict=True):
            assert torch.equal(run(network), expected)
            assert torch.equal(run(model), plain)
    results = [plain, *alone]
    assert all(not torch.allclose(results[i], results[j]) for i in range(4) for j in range(i))


def test_a_positive_compiled_in_place_is_not_called_for_its_negative() -> None:
    model = transformer()
    plain = run(model)
    perturbed = Perturbed([IdentityAttention()], positive=model)
    expected = run(perturbed.network(trajectory()))
    for module in (model, model.network, *model.network.blocks):
        module._compiled_call_impl = lambda *_: pytest.fail("the call of the original")  # set by compile()
    assert torch.equal(run(perturbed.network(trajectory())), expected)
    assert not torch.allclose(expected, plain)


def test_the_perturbed_network_compiles() -> None:
    model = transformer(depth=2)
    plain = run(model)
    perturbed = Perturbed(
        [IdentityAttention(), BlurredQueries(1.0, layers=["blocks.0.attention.core"])], positive=model
    )
    network = perturbed.network(trajectory())
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    assert torch.equal(run(compiled), run(network))
    assert torch.equal(run(model), plain)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace")  # the breaks
@pytest.mark.parametrize("kind", NETWORKS)
def test_random_perturbations_compile_with_breaks_in_their_graphs(kind: str) -> None:
    model = NETWORKS[kind]()
    plain = run(model)
    ways = [RandomMask(0.5), ShuffledTokens(), StochasticSkip(0.5), NoisyNoiseEmbedding(), AnnealedCondition()]
    perturbed = Perturbed(ways, positive=model)
    eager, graphs = perturbed.network(trajectory()), torch.compile(perturbed.network(trajectory()), backend="eager")
    for _ in range(2):  # the streams advance alike
        torch.testing.assert_close(run(graphs), run(eager))
    assert torch.equal(run(model), plain)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the compiler of torch needs g++ on a CPU")
@pytest.mark.parametrize("kind", NETWORKS)
def test_positive_and_two_negatives_compiled_equal_eager(kind: str) -> None:
    model = NETWORKS[kind]()
    ways = [IdentityAttention(), BlurredQueries(1.0)]
    eager = [model, *(Perturbed([way], positive=model).network(trajectory()) for way in ways)]
    expected = [run(network) for network in eager]
    compiled = [torch.compile(network, fullgraph=True) for network in eager]
    for _ in range(2):  # alternating, so that one would find the leftovers of another
        for network, value in zip(compiled, expected, strict=True):
            torch.testing.assert_close(run(network), value, rtol=1e-5, atol=1e-5)
    assert all(not torch.allclose(value, expected[0], atol=1e-3) for value in expected[1:])


def test_modules_that_appear_twice_stay_one() -> None:
    shared = nn.Linear(2, 2)
    tree = shallow_clone(nn.ModuleDict({"a": nn.Sequential(shared, nn.ReLU()), "b": shared}))
    assert tree["b"] is tree["a"][0] and tree["b"] is not shared and tree["b"].weight is shared.weight


# Several perturbations


class Plus(Replacement):
    """Adds a number to the result of an attention core or a block."""

    kind = "attention"

    def __init__(self, number: float, **options: Any) -> None:
        super().__init__(**options)
        self.number = number

    def replace(self, module: nn.Module, trajectory: Trajectory) -> nn.Module:
        return Added(module, self.number)


class Added(nn.Module):
    def __init__(self, module: nn.Module, number: float) -> None:
        super().__init__()
        self.module, self.number = module, number

    def forward(self, *arguments: Any) -> Tensor:
        return self.module(*arguments) + self.number


def test_inner_and_outer_layers_are_replaced_together_in_any_order() -> None:
    model = transformer()
    inner, outer = Plus(0.5), Plus(2.0, layers=["blocks.2"])
    expected_tree = copy.deepcopy(model)
    block = expected_tree.network.get_submodule("blocks.2")
    block.attention.core = Added(block.attention.core, 0.5)  # type: ignore[union-attr]
    expected_tree.network.blocks[2] = Added(block, 2.0)  # type: ignore[index, operator]
    expected = run(expected_tree)
    for order in ([inner, outer], [outer, inner]):
        assert torch.equal(run(Perturbed(order, positive=model).network(trajectory())), expected)


def test_several_replacements_of_one_layer_are_applied_in_order() -> None:
    model = transformer()
    both = Perturbed([ScaledQueries(0.5), ScaledQueries(0.1)], positive=model)
    one = Perturbed([ScaledQueries(0.05)], positive=model)
    torch.testing.assert_close(run(both.network(trajectory())), run(one.network(trajectory())))
    last = Perturbed([Plus(9.0), IdentityAttention()], positive=model)
    assert torch.equal(run(last.network(trajectory())), run(Perturbed([IdentityAttention()], positive=model)))


@pytest.mark.parametrize("kind", NETWORKS)
def test_nested_perturbations_add_up(kind: str) -> None:
    model = NETWORKS[kind]()
    plain = run(model)
    first, second = IdentityAttention(), ShuffledTokens()
    nested = Perturbed([second], positive=Perturbed([first], positive=model))
    expected = run(Perturbed([first, second], positive=model).network(trajectory()))
    assert torch.equal(run(nested.network(trajectory())), expected)
    alone = [run(Perturbed([each], positive=model).network(trajectory())) for each in (first, second)]
    assert not any(torch.allclose(expected, other) for other in (plain, *alone))
    assert torch.equal(run(model), plain)


class Models:
    def __init__(self, main: Preconditioned) -> None:
        self.main = main

    def snapshot(self, **_: Any) -> Preconditioned:
        return self.main


def test_references_are_resolved_all_the_way_down() -> None:
    model = unet()
    nested = Perturbed([ShuffledTokens()], positive=Perturbed([IdentityAttention()]))
    resolved = nested.resolve(Models(model))
    expected = Perturbed([IdentityAttention(), ShuffledTokens()], positive=model)
    assert torch.equal(run(resolved), run(expected))
    assert isinstance(nested.positive.positive, Main)  # type: ignore[attr-defined]


def test_seg_and_pag_negatives_at_once_with_cfg() -> None:
    """Three negatives of one network: D + sum (w - 1) (D - D_i), each as if it were alone."""
    model = unet()
    negatives = [
        Unconditional(model),
        *(Perturbed([p], positive=model) for p in (IdentityAttention(), BlurredQueries())),
    ]
    guided = run(Guided(negatives, [1.5, 2.0, 3.0], positive=model))
    plain = run(model)
    uncond = model(noisy_images(), SIGMA, None).detach()
    pag, seg = (run(kind(0.0, positive=model)) for kind in (PerturbedAttentionGuidance, SmoothedEnergyGuidance))
    expected = plain + 0.5 * (plain - uncond) + (plain - pag) + 2 * (plain - seg)
    torch.testing.assert_close(guided, expected, rtol=1e-4, atol=1e-5)


def test_a_perturbation_without_its_abstract_method_cannot_be_made() -> None:
    """It must define `start`, or as a `Replacement` `replace`."""
    for base, owed in ((Perturbation, "start"), (Replacement, "replace")):
        kind = type("Incomplete", (base,), {"kind": "attention"})
        with pytest.raises(TypeError, match=f"abstract method '?{owed}'?"):
            kind()
