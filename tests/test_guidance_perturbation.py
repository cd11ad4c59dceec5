"""Perturbed networks: they share only the parameters, add up, compile, and name their layers exactly."""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lightning_guide.denoiser import Trajectory
from lightning_guide.distributions.gaussian_mixture import GaussianMixture
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
from lightning_guide.noise import KarrasGrid
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.samplers import Heun
from lightning_guide.seeds import SampleSeeds
from lightning_guide.utils.modules import matching_names, replace_modules, shallow_clone
from tests.processes import Processes
from tests.small_networks import LABELS, NETWORKS, SIGMA, noisy_images, trajectory, transformer, unet

CORE = {"unet": "decoder.4x4_in0.attention.core", "transformer": "blocks.2.attention.core"}


def run(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(noisy_images(), SIGMA, LABELS)


# A tree of its own


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


# Names of layers


def test_names_are_exact_and_never_prefixes() -> None:
    """blocks.1 does not match blocks.10."""
    network = transformer(depth=12).network
    assert matching_names(network, "blocks.1", "test") == ["blocks.1"]
    assert matching_names(network, "blocks.1.attention.core", "test") == ["blocks.1.attention.core"]
    assert SkipBlocks(layers=["blocks.1"]).chosen(network) == ["blocks.1"]
    assert matching_names(network, "blocks.1*.attention", "test") == [f"blocks.{i}.attention" for i in (1, 10, 11)]


def test_a_pattern_names_the_outermost_and_each_layer_counts_once() -> None:
    network = transformer().network
    blocks = [f"blocks.{i}" for i in range(4)]
    assert matching_names(network, "blocks.*", "test") == blocks
    assert matching_names(network, "*.core", "test") == [f"{name}.attention.core" for name in blocks]
    assert ShuffledTokens(layers=["blocks.*", "blocks.1"]).chosen(network) == blocks
    assert ShuffledTokens(layers=["blocks.1", "blocks.1.mlp"]).chosen(network) == ["blocks.1", "blocks.1.mlp"]


def test_layers_are_a_list_of_names() -> None:
    """Defect 1 of the widely used library: a list of layers raised a TypeError."""
    model = transformer()
    several = PerturbedAttentionGuidance(2.0, layers=["blocks.0.attention.core", "blocks.3.*.core"], positive=model)
    one = PerturbedAttentionGuidance(2.0, layers=["blocks.0.attention.core"], positive=model)
    assert not torch.allclose(run(several), run(one))
    with pytest.raises(
        ValueError, match=r"IdentityAttention needs a list of names or patterns of layers, got \[7, 8\]"
    ):
        PerturbedAttentionGuidance(layers=[7, 8])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="SkipBlocks needs a list of names or patterns of layers, got 'blocks.1'"):
        SkipBlocks(layers="blocks.1")


@pytest.mark.parametrize("pattern", ["blocks.9.attention.core", "decoder.*.attention.core"])
def test_a_name_without_a_match_lists_the_existing_layers(pattern: str) -> None:
    model = transformer()
    expected = (
        "IdentityAttention: no layer of DiffusionTransformer is called .* there are blocks.0.attention.core, blocks"
    )
    with pytest.raises(ValueError, match=expected):
        PerturbedAttentionGuidance(layers=[pattern], positive=model)(noisy_images(), SIGMA, LABELS)
    with pytest.raises(ValueError, match=expected):
        PerturbedAttentionGuidance(layers=[pattern]).resolve(Models(model))
    with pytest.raises(ValueError, match="there are patches, patches.proj"):
        matching_names(model.network, "nothing.at_all", "test")


def test_a_network_without_such_a_part_is_refused() -> None:
    model = unet()
    model.network.parts = {"block": ("decoder.*_in0",)}
    with pytest.raises(
        ValueError,
        match=r"IdentityAttention acts on the attention of a network; EDM2UNet has no default layers for it, only",
    ):
        run(Perturbed([IdentityAttention()], positive=model))


def test_models_that_cannot_be_perturbed_are_refused() -> None:
    mixture = GaussianMixture(torch.zeros(1, 2), torch.eye(2)[None])
    with pytest.raises(ValueError, match="layers of a Preconditioned network; got a GaussianMixture"):
        Perturbed([IdentityAttention()], positive=mixture)(torch.zeros(1, 2), SIGMA)
    with pytest.raises(ValueError, match="got a Unconditional"):
        Perturbed([IdentityAttention()], positive=Unconditional()).resolve(Models(unet()))
    with pytest.raises(ValueError, match="at least one perturbation"):
        Perturbed([])


def test_modules_are_replaced_in_a_clone() -> None:
    model = unet()
    plain = run(model)
    tree = replace_modules(model, {f"network.{CORE['unet']}": nn.Identity(), "network.decoder.4x4_in0": nn.Identity()})
    assert isinstance(tree, Preconditioned) and isinstance(tree.network.decoder["4x4_in0"], nn.Identity)  # type: ignore[index]
    assert torch.equal(run(model), plain)


# In two processes


def guided_in_ddp(folder: str, world: int) -> None:
    """Gradients through guidance under DDP, with a perturbed network at the same time, and samples of this rank."""
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", rank=rank, world_size=world)
    model = transformer(depth=2)
    alive = Perturbed([IdentityAttention()], positive=model).network(trajectory())
    wrapped = DistributedDataParallel(PerturbedAttentionGuidance(2.0, positive=model))
    share = slice(2 * rank, 2 * rank + 2)
    wrapped(noisy_images(4)[share], SIGMA, torch.arange(4)[share]).square().mean().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(1e-3 * parameter.grad if parameter.grad is not None else 0)
    samples = drawn(model, range(2 * rank, 2 * rank + 2))
    torch.save({"gradients": gradients, "samples": samples, "alive": run(alive)}, Path(folder) / f"seen-{rank}.pt")
    dist.destroy_process_group()


def drawn(model: Preconditioned, indices: range) -> Tensor:
    negatives = [Perturbed([each], positive=model) for each in (RandomMask(0.5), ShuffledTokens())]
    guided = Guided(negatives, [2.0, 1.5], positive=model)
    grid = KarrasGrid(3, sigma_min=0.1, sigma_max=5.0)
    return Heun(grid).sample(guided, seeds=SampleSeeds(0, indices), condition=torch.tensor([i % 4 for i in indices])).x


def test_two_processes_train_and_sample_as_one(processes: Processes, tmp_path: Path) -> None:
    call = ("tests.test_guidance_perturbation", "guided_in_ddp")
    processes.call_ranks(2, call, tmp_path / "log", folder=str(tmp_path), world=2)
    seen = [torch.load(tmp_path / f"seen-{rank}.pt", weights_only=True) for rank in range(2)]
    model = transformer(depth=2)
    PerturbedAttentionGuidance(2.0, positive=model)(noisy_images(4), SIGMA, torch.arange(4)).square().mean().backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.equal(seen[0]["gradients"][name], seen[1]["gradients"][name])
            largest = float(parameter.grad.abs().max())
            torch.testing.assert_close(seen[0]["gradients"][name], parameter.grad, rtol=1e-4, atol=1e-4 * largest)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(1e-3 * parameter.grad if parameter.grad is not None else 0)
    torch.testing.assert_close(
        seen[0]["alive"], run(Perturbed([IdentityAttention()], positive=model)), rtol=1e-4, atol=1e-4
    )
    together = torch.cat([each["samples"] for each in seen])
    torch.testing.assert_close(together, drawn(model, range(4)), rtol=1e-3, atol=1e-3)


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
