"""64 ranks, simulated by threads: positions of the data, noise, labels and reductions are those of one rank."""

from __future__ import annotations

import itertools
import threading
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from datamodules.buckets import BucketVisits
from datamodules.examples import Visits
from datamodules.stream import Stream, split_evenly
from lightning_guide.data import Batch, SampleBatch
from lightning_guide.denoiser import Denoiser
from lightning_guide.evaluation import FrechetDistance, KernelDistance, PrecisionRecall, RawPixels
from lightning_guide.evaluation.metrics.base import SampleMetric
from lightning_guide.evaluation.sampling_loop import SamplingLoop
from lightning_guide.guidance import ClassifierFreeGuidance
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.optimization.round_buffers import RoundBuffers
from lightning_guide.seeds import SampleSeeds
from lightning_guide.training.losses import EDMLoss, LossTerms
from lightning_guide.training.monitor import HeldoutLoss, NoiseLevelMeans
from lightning_guide.utils.distributed import all_gather_objects, all_reduce_sum, run_on_all_ranks
from tests.runs import SAMPLER, TinyImages, evaluation, tiny_module
from tests.thread_ranks import on_thread_ranks

WORLD = 64


def place(rank: int, world: int, seen: int = 0, sets: Any = ()) -> Any:
    """Return the part of a trainer that datamodules and modules use."""
    return SimpleNamespace(
        global_rank=rank,
        world_size=world,
        state=SimpleNamespace(fn="validate"),
        lightning_module=SimpleNamespace(images_seen=seen, sample_sets=lambda stage: list(sets)),
        _accelerator_connector=SimpleNamespace(use_distributed_sampler=False),
    )


def positions(world: int, batch: int, steps: int, seen: int = 0) -> list[int]:
    """Return the stream positions that `world` ranks read, step by step and rank by rank."""
    streams = [iter(Stream(batch, rank=rank, world=world, start=lambda: seen)) for rank in range(world)]
    return [k for _ in range(steps) for stream in streams for k in next(stream)]


def test_stream_positions_follow_each_other_when_number_of_ranks_changes() -> None:
    """64 ranks, resumed on 48, on 7 with larger batches and on one: no position is left out or read twice."""
    read: list[int] = []
    for world, batch, steps in ((WORLD, 4, 9), (48, 3, 5), (7, 11, 6), (1, 5, 4), (WORLD, 1, 3)):
        read += positions(world, batch, steps, seen=len(read))
    assert read == list(range(len(read))) and len(read) > 3000


@pytest.mark.parametrize("workers", [0, 2])
def test_training_batches_of_64_ranks_are_the_stream(workers: int) -> None:
    """Two steps of the loaders of all ranks (of four with workers) hold the elements and flips of one rank."""
    seen, size = 1000, 3
    data = TinyImages(batch_size=size, num_workers=workers)
    ranks = range(WORLD) if workers == 0 else (0, 1, 31, 63)
    whole = Visits(data.training(), seed=data.seed, flip=True)
    for rank in ranks:
        data.trainer = place(rank, WORLD, seen)
        for step, batch in enumerate(itertools.islice(data.train_dataloader(), 2)):
            first = seen + (step * WORLD + rank) * size
            expected = whole[range(first, first + size)]
            assert torch.equal(batch.x, expected.x) and torch.equal(batch.condition, cast(Tensor, expected.condition))


def test_buckets_give_each_rank_one_size_and_all_ranks_every_element() -> None:
    """A pass over the blocks visits each element of both buckets equally often, whichever rank reads a block."""
    kinds, block = torch.tensor([0] * 40 + [1] * 24), 4
    visits = BucketVisits(cast(Any, None), kinds, block=block, seed=0)
    seen = torch.zeros(len(kinds), dtype=torch.int64)
    for rank in range(WORLD):
        elements = visits.elements(next(iter(Stream(block, rank=rank, world=WORLD))))
        assert len(kinds[elements].unique()) == 1
        seen += elements.bincount(minlength=len(kinds))
    assert seen.tolist() == [block] * len(kinds)


@pytest.mark.parametrize("count", [1, 63, 64, 65, 1000])
def test_finite_sets_are_split_without_gap_or_overlap(count: int) -> None:
    """Held-out data and sample numbers; some ranks may have none."""
    split = [split_evenly(count, 3, rank=rank, world=WORLD) for rank in range(WORLD)]
    assert sorted(i for ranges in split for part in ranges for i in part) == list(range(count))
    samples, data = evaluation(num_samples=count, batch_size=3), TinyImages()
    found: list[tuple[int, int]] = []
    for rank in range(WORLD):
        data.trainer = place(rank, WORLD, sets=[(samples.dataset(3), samples.batch_size)])
        (loader,) = data.test_dataloader()
        found += [pair for batch in loader for pair in zip(batch.index.tolist(), batch.condition.tolist(), strict=True)]
    assert sorted(found) == [(i, i % 3) for i in range(count)]


class Draws(EDMLoss):
    """Keeps the noise levels and the noise of the last step."""

    def at(self, denoiser: Any, clean: Tensor, condition: Any, sigma: Tensor, noise: Tensor) -> LossTerms:
        self.drawn = torch.cat([sigma, noise.flatten()])
        return super().at(denoiser, clean, condition, sigma, noise)


def test_training_noise_differs_on_all_ranks_and_steps() -> None:
    """Each (images seen, rank) has noise of its own; the same again is the same noise."""
    module = tiny_module(loss=Draws())
    module.log = lambda *args, **options: None  # type: ignore[method-assign]
    batch = Batch(torch.zeros(2, 1, 4, 4), torch.tensor([0, 1]))

    def drawn(module: DiffusionModule, rank: int, seen: int) -> Tensor:
        module.trainer = place(rank, WORLD)
        module.images_seen, module._pending_images = seen, 0
        with torch.random.fork_rng(devices=[]):
            module.training_step(batch, 0)
        return cast(Draws, module.loss).drawn

    noise = torch.stack([drawn(module, rank, seen) for seen in (0, 128, 256) for rank in range(WORLD)])
    assert len(noise.unique(dim=0)) == 3 * WORLD
    gram = torch.corrcoef(noise[:, 2:]) - torch.eye(len(noise))
    assert gram.abs().max() < 0.9  # 32 numbers each: independent ones stay below 0.8
    assert torch.equal(drawn(module, 63, 128), noise[WORLD + 63])


def test_sample_seeds_of_64_ranks_are_distinct_and_those_of_one() -> None:
    """A million samples have as many seeds; noise and labels of any rank's share are rows of all of them."""
    count = 1000
    generators = SampleSeeds(3, range(0, 2**20, 1049)).generators("initial")
    assert len({generator.initial_seed() for generator in generators}) == len(generators)
    noise, labels = (SampleSeeds(3, range(count)) for _ in range(2))
    x, y = noise.normal("initial", (2,)), labels.integers("labels", 10)
    assert len(x.unique(dim=0)) == count
    for rank in range(WORLD):
        own = range(rank, count, WORLD)
        assert torch.equal(SampleSeeds(3, own).normal("initial", (2,)), x[rank::WORLD])
        assert torch.equal(SampleSeeds(3, own).integers("labels", 10), y[rank::WORLD])


class Stored(TinyImages):
    """Data stored as denoiser inputs: no rounding hides a difference."""

    def decode(self, x: Tensor) -> Tensor:
        return x

    def encode(self, raw: Tensor) -> Tensor:
        return raw

    def reference(self, device: torch.device) -> Any:
        return [Batch(torch.randn(200, 1, 4, 4, generator=torch.Generator().manual_seed(1)))]


def metrics() -> dict[str, SampleMetric]:
    """Return metrics of each kind of state: sums, and rows of features."""
    raw = RawPixels()
    return {"fd": FrechetDistance(raw), "kid": KernelDistance(raw), "pr": PrecisionRecall(raw, k=3)}


BUILDING = threading.Lock()
"""Signatures of classes of C are parsed, which Python 3.11 does not do well in several threads."""


def evaluate(main: Denoiser, rank: int, world: int, count: int) -> tuple[dict[int, Tensor], dict[str, float]]:
    """Draw one rank's share of an evaluation, and return samples by number and the results of all ranks."""
    with BUILDING:
        chosen = evaluation(ClassifierFreeGuidance(2.0), num_samples=count, batch_size=5, sampler=SAMPLER)
        data, prepared = Stored(), metrics()
    data.trainer = place(rank, world, sets=[(chosen.dataset(3), chosen.batch_size)])
    for metric in prepared.values():
        metric.prepare(data.reference(torch.device("cpu")))
    (loader,) = data.test_dataloader()
    with BUILDING:
        loop = SamplingLoop.start("it", chosen, cast(Any, SimpleNamespace(main=main, prompts=None)), prepared)
    samples: dict[int, Tensor] = {}
    with torch.no_grad():
        for batch in loader:
            drawn = loop.draw(cast(SampleBatch, batch), data)
            samples |= dict(zip(drawn.index.tolist(), drawn.x, strict=True))
        results = loop.finish(torch.device("cpu"), contain=lambda what: nullcontext())
    return samples, {key: value for key, value in results.items() if key != "seconds"}


@pytest.mark.filterwarnings(
    "ignore:The ``compute`` method"
)  # said on rank 0 alone, which all threads take to be theirs
@pytest.mark.parametrize("count", [90, pytest.param(50, marks=pytest.mark.slow)])
def test_evaluation_on_64_ranks_equals_one(count: int) -> None:
    """Each sample is drawn once, and results are those of one rank on every rank, some of which have no sample."""
    main = tiny_module().denoiser
    samples, results = evaluate(main, 0, 1, count)
    parts = on_thread_ranks(WORLD, lambda rank: evaluate(main, rank, WORLD, count))
    together: dict[int, Tensor] = {}
    for own, _ in parts:
        assert not together.keys() & own.keys()
        together |= own
    assert sorted(together) == list(range(count))
    torch.testing.assert_close(
        torch.stack([together[i] for i in range(count)]), torch.stack([samples[i] for i in range(count)])
    )
    assert results["samples"] == count and {"fd", "kid", "precision", "recall"} <= results.keys()
    for _, other in parts:
        assert other == pytest.approx(results, rel=1e-4, abs=1e-6)


def test_losses_and_rounds_of_64_ranks_are_those_of_one() -> None:
    """Held-out losses, means by noise level, and the buffers of a round of gradient guidance."""
    count = 150
    module, generator = tiny_module(), torch.Generator().manual_seed(0)
    clean, labels = torch.randn(count, 1, 4, 4, generator=generator), torch.arange(count) % 3
    sigma = torch.rand(count, generator=generator) * 5

    def share(rank: int, world: int) -> dict[str, float]:
        rows = torch.arange(rank, count, world)
        held, means = HeldoutLoss((0.3, 1.0), seed=0), NoiseLevelMeans([0.5, 2.0])
        buffers = RoundBuffers.zeros(count, clean, labels)
        if len(rows):
            held.update(EDMLoss(), module.denoiser, Batch(clean[rows], labels[rows]), rows.tolist())
            error = clean[rows].flatten(1).square().mean(1)
            means.update(LossTerms(objective=error, error=error, sigma=sigma[rows]))
            buffers.write_samples(rows, clean[rows], labels[rows], error)
            buffers.spend(len(rows), 7, 1.0)
        buffers.reduce()
        found = buffers.statistics(clean, {"first": slice(0, 3)}) | {"calls": float(buffers.spent[1])}
        return found | held.compute() | means.report(all_reduce_sum)

    module.denoiser.eval()
    alone = share(0, 1)
    assert alone["calls"] == 7 * count and "loss_sigma_0.5_to_2" in alone and "sigma_0.3" in alone
    for rank in on_thread_ranks(WORLD, lambda rank: share(rank, WORLD)):
        assert rank == pytest.approx(alone, rel=1e-5)


def test_error_of_one_rank_reaches_all_64() -> None:
    """No rank is left waiting, and objects are gathered in order."""

    def act(rank: int) -> str:
        assert all_gather_objects(rank) == list(range(WORLD))

        def fail() -> None:
            if rank == 41:
                raise ValueError("rank 41 has a reason")

        with pytest.raises(ValueError, match="rank 41 has a reason"):
            run_on_all_ranks(fail)
        return "ended"

    assert on_thread_ranks(WORLD, act) == ["ended"] * WORLD


def test_sum_of_64_totals_is_one_pass() -> None:
    """`compute_over` adds the parts of ranks without a process group, in float64."""
    metric = FrechetDistance(RawPixels())
    metric.prepare(Stored().reference(torch.device("cpu")))
    x = torch.randn(500, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    parts = []
    for rank in range(WORLD):
        part = metric.alone()
        part.update(x[rank::WORLD])
        parts.append(part.totals())
    metric.update(x)
    torch.testing.assert_close(metric.compute_over(parts), metric.compute(), rtol=1e-9, atol=1e-12)
