"""Skipped blocks: which blocks can be skipped, the network without them, and the random choice of each step."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_guide.denoiser import Denoiser, Trajectory
from lightning_guide.guidance import Guided, Main
from lightning_guide.guidance.negatives import SkipBlocks, SkipLayerGuidance, StochasticSelfGuidance, StochasticSkip
from lightning_guide.guidance.negatives.skip_layer import record_shapes
from lightning_guide.guidance.perturbation import Perturbed
from lightning_guide.network import Network
from lightning_guide.noise import KarrasGrid
from lightning_guide.samplers import Euler, Heun, Sampler
from lightning_guide.seeds import SampleSeeds
from tests.small_networks import LABELS, NETWORKS, SIGMA, noisy_images, trajectory, transformer, unet


def run(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(noisy_images(), SIGMA, LABELS)


def test_a_network_without_its_block() -> None:
    model = transformer()
    shorter = copy.deepcopy(model)
    del shorter.network.blocks[1:3]  # type: ignore[operator]
    skipping = Perturbed([SkipBlocks(layers=["blocks.1", "blocks.2"])], positive=model)
    assert torch.equal(run(skipping), run(shorter))
    assert not torch.allclose(run(skipping), run(model))


def test_the_unet_without_attention() -> None:
    model = unet()
    plain = copy.deepcopy(model)
    plain.network.get_submodule("decoder.4x4_in0").attention = None  # type: ignore[assignment]
    skipping = Perturbed([SkipBlocks(layers=["decoder.*_in0.attention"])], positive=model)
    assert torch.equal(run(skipping), run(plain))


@pytest.mark.parametrize("kind", NETWORKS)
def test_an_empty_set_is_the_model(kind: str) -> None:
    model = NETWORKS[kind]()
    assert torch.equal(run(Perturbed([SkipBlocks(layers=[])], positive=model)), run(model))
    assert not torch.allclose(run(Perturbed([SkipBlocks()], positive=model)), run(model))


def test_a_block_that_changes_the_shape_cannot_be_skipped() -> None:
    model = unet()
    for name, inside, outside in (("decoder.8x8_up", "4, 4", "8, 8"), ("decoder.4x4_block0", "32, 4, 4", "16, 4, 4")):
        with pytest.raises(ValueError, match=rf"SkipBlocks cannot skip {name}: .*{inside}\) into .*{outside}\)"):
            run(Perturbed([SkipBlocks(layers=["decoder.4x4_in0", name])], positive=model))


def test_a_container_that_is_never_called_cannot_be_skipped() -> None:
    for perturbation in (SkipBlocks(layers=["encoder"]), StochasticSkip(layers=["encoder"], protected=[])):
        with pytest.raises(ValueError, match="cannot skip encoder: EDM2UNet never calls it, but parts of it"):
            perturbation.chosen(unet().network)


def test_submodules_of_protected_blocks_are_protected() -> None:
    network = unet(num_blocks=2).network
    assert StochasticSkip(protected=["encoder"]).chosen(network) == ["decoder.4x4_in0", "decoder.4x4_in1"]
    names = [f"blocks.{i}" for i in range(11)]
    protected = StochasticSkip(protected=["blocks.1"]).chosen(transformer(depth=11).network)
    assert protected == [name for name in names if name != "blocks.1"], "blocks.10 is not inside blocks.1"


def test_recording_shapes_leaves_the_network_unchanged() -> None:
    model = unet(dropout=0.5).train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before = torch.get_rng_state()
    found = record_shapes(model.network, ["encoder.4x4_down", "decoder.4x4_in0", "decoder.4x4_in0.residual_in"])
    assert found == {
        "encoder.4x4_down": (((1, 8, 8, 8),), ((1, 8, 4, 4),)),
        "decoder.4x4_in0": (((1, 16, 4, 4),), ((1, 16, 4, 4),)),
        "decoder.4x4_in0.residual_in": (((1, 16, 4, 4),), ((1, 16, 4, 4),)),
    }
    assert model.training and torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


# Stochastic


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor, *arguments: Any) -> Tensor:
        self.calls += 1
        return x + 1


def skipped(perturbation: StochasticSkip, network: Network, place: Trajectory, steps: list[int]) -> list[set[str]]:
    """Blocks that are not called in each of these steps of one trajectory."""
    names = perturbation.chosen(network)
    replacements = perturbation.start(place, names)
    blocks = {name: Counting() for name in names}
    modules = {name: replacements[name](block) for name, block in blocks.items()}
    result = []
    for step in steps:
        place.step = step
        for block in blocks.values():
            block.calls = 0
        for module in modules.values():
            module(torch.zeros(1))
        result.append({name for name, block in blocks.items() if not block.calls})
    return result


def test_each_step_skips_its_share_and_no_protected_block() -> None:
    network = transformer(depth=11).network
    place = trajectory(steps=200)
    drawn = skipped(StochasticSkip(0.2), network, place, list(range(200)))
    assert {len(names) for names in drawn} == {2}  # of 10 blocks: the first of 11 is protected
    counts = Counter(name for names in drawn for name in names)
    assert set(counts) == {f"blocks.{i}" for i in range(1, 11)}
    assert all(15 < count < 70 for count in counts.values())  # 40 on average, standard deviation 5.7
    few = skipped(
        StochasticSkip(0.01, protected=["blocks.10", *(f"blocks.{i}" for i in range(5))]),
        network,
        place,
        list(range(50)),
    )
    assert {len(names) for names in few} == {1} and set.union(*few) == {f"blocks.{i}" for i in range(5, 10)}
    every = skipped(StochasticSkip(1.0, protected=[]), network, place, [0])
    assert every == [{f"blocks.{i}" for i in range(11)}]


def test_the_draw_belongs_to_the_seed_and_the_step() -> None:
    """Not to the batch, the stage of the step, nor to which steps were drawn before."""
    network = transformer(depth=11).network
    method = StochasticSkip(0.3)
    first = skipped(method, network, trajectory(range(3), steps=8), [0, 0, 1, 1, 5, 5])
    assert first[0] == first[1] and first[2] == first[3] and first[4] == first[5]
    assert first[0] != first[2]
    assert skipped(method, network, trajectory([7], steps=8), [5, 1]) == [first[4], first[2]]
    assert skipped(method, network, trajectory([7], steps=8, seed=1), [0, 1, 5]) != first[::2]


def test_by_default_all_blocks_that_keep_the_shape_but_the_first_may_be_skipped() -> None:
    assert StochasticSkip().chosen(transformer().network) == ["blocks.1", "blocks.2", "blocks.3"]
    model = unet(num_blocks=2)
    chosen = StochasticSkip().chosen(model.network)
    assert chosen == ["encoder.8x8_block1", "encoder.4x4_block1", "decoder.4x4_in0", "decoder.4x4_in1"]
    every = Perturbed([StochasticSkip(1.0)], positive=model)
    fixed = Perturbed([SkipBlocks(layers=chosen)], positive=model)
    assert torch.equal(run(every), run(fixed))


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_share_of_zero_is_the_model(kind: str) -> None:
    model = NETWORKS[kind]()
    assert torch.equal(run(Perturbed([StochasticSkip(0.0)], positive=model)), run(model))


def test_both_stages_of_heun_skip_the_same_blocks() -> None:
    """The samples equal those of Heun's rule, written out, with one fixed network for each step."""
    model = transformer(depth=8)
    grid = KarrasGrid(3, sigma_min=0.1, sigma_max=5.0)
    method = StochasticSkip(0.4)
    guided = Guided([Perturbed([method], positive=model)], [2.0], positive=model)
    with torch.no_grad():
        x = Heun(grid).sample(guided, seeds=SampleSeeds(0, range(3)), condition=LABELS).x
        drawn = skipped(method, model.network, trajectory(steps=3), [0, 1, 2])
        assert drawn[0] != drawn[1]
        levels = grid.sigmas().tolist()
        y = levels[0] * SampleSeeds(0, range(3)).normal("initial", (1, 8, 8))
        for names, now, then in zip(drawn, levels, levels[1:], strict=False):
            negative = Perturbed([SkipBlocks(layers=sorted(names))], positive=model)

            def slope(x: Tensor, sigma: float, negative: Perturbed = negative) -> Tensor:
                pos, neg = (each(x, torch.tensor(sigma), LABELS) for each in (model, negative))
                return (x - (2 * pos - neg)) / sigma

            step = slope(y, now)
            if then > 0:
                step = (step + slope(y + (then - now) * step, then)) / 2
            y = y + (then - now) * step
    torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-3)


def test_outside_its_window_the_negative_is_not_called() -> None:
    model = transformer(depth=2)

    def evaluations(sampler: Sampler, guided: Denoiser) -> int:
        with torch.no_grad():
            return sampler.sample(guided, seeds=SampleSeeds(0, [0]), condition=LABELS[:1]).evaluations

    stochastic = StochasticSelfGuidance(positive=model)
    assert evaluations(Euler(KarrasGrid(10)), stochastic) == 10 + 8  # steps 1 to 8 of 0 to 9
    assert evaluations(Heun(KarrasGrid(10)), stochastic) == 19 + 16
    some = SkipLayerGuidance(3.5, window=(0.01, 0.2), positive=model)
    assert evaluations(Euler(KarrasGrid(20)), some) == 20 + 3  # steps 1, 2 and 3


def test_invalid_settings_are_refused() -> None:
    for share in (-0.1, 1.1):
        with pytest.raises(ValueError, match="StochasticSkip needs a share of the blocks between 0"):
            StochasticSkip(share)
    network = transformer().network
    with pytest.raises(ValueError, match="no block to skip in DiffusionTransformer: blocks.1 keep .* protected .*1"):
        StochasticSkip(layers=["blocks.1"]).chosen(network)
    with pytest.raises(ValueError, match="StochasticSkip: no layer of DiffusionTransformer is called 'block.0'"):
        StochasticSkip(protected=["block.0"]).chosen(network)
    with pytest.raises(ValueError, match="StochasticSkip cannot skip patches"):
        StochasticSkip(layers=["patches"]).chosen(network)
    with pytest.raises(ValueError, match="0 <= low < high <= 1"):
        StochasticSelfGuidance(window=(0.9, 0.1))
    assert isinstance(StochasticSelfGuidance().positive, Main)
