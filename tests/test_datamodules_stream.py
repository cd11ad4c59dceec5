"""Order of the data: a function of the position alone, for any number of processes and workers."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from datamodules import Digits, TensorExamples
from datamodules.base_images import ImageData
from datamodules.examples import Visits
from datamodules.stream import Stream, epoch_order, split_evenly
from lightning_guide.data import Batch

COUNT = 23


class Numbered(ImageData):
    """Images whose pixels are their own number."""

    data_shape = (1, 1, 2)
    num_classes = 100

    def training(self) -> TensorExamples:
        number = torch.arange(COUNT)
        return TensorExamples(torch.stack([number, 100 + number], 1).to(torch.uint8)[:, None, None], number)

    def heldout(self) -> TensorExamples:
        return self.training()


def numbers(data: Numbered, batches: int, *, rank: int = 0, world: int = 1, seen: int = 0) -> list[list[int]]:
    """Return the elements of the first training batches of one process."""
    data.trainer = trainer(rank, world, seen)
    loaded = list(itertools.islice(iter(data.train_dataloader()), batches))
    assert all(type(batch) is Batch and batch.x.dtype == torch.uint8 for batch in loaded)
    return [batch.condition.tolist() for batch in loaded]


def trainer(rank: int, world: int, seen: int = 0, *, distributed_sampler: bool = False, sets: Any = ()) -> Any:
    """Return the part of a trainer that a datamodule uses."""
    return SimpleNamespace(
        global_rank=rank,
        world_size=world,
        state=SimpleNamespace(fn="fit"),
        lightning_module=SimpleNamespace(images_seen=seen, sample_sets=lambda stage: list(sets)),
        _accelerator_connector=SimpleNamespace(use_distributed_sampler=distributed_sampler),
    )


def expected(first: int, count: int, seed: int = 0) -> list[int]:
    """Return the stream by its definition, element by element."""
    return [int(epoch_order(seed, k // COUNT, COUNT)[k % COUNT]) for k in range(first, first + count)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("seen", [0, 40, 46])
def test_stream_follows_its_definition_from_any_position(workers: int, seen: int) -> None:
    """Every batch, also across the end of a pass, for any starting point and number of workers."""
    read = numbers(Numbered(batch_size=5, num_workers=workers), 8, seen=seen)
    assert sum(read, []) == expected(seen, 40)


@pytest.mark.parametrize("workers", [0, 2])
def test_two_processes_read_same_stream_as_one(workers: int) -> None:
    """The union of the ranks' batches of one step is the next world * batch_size positions."""
    ranks = [numbers(Numbered(batch_size=4, num_workers=workers), 5, rank=rank, world=2, seen=16) for rank in range(2)]
    steps = [first + second for first, second in zip(*ranks, strict=True)]
    assert sum(steps, []) == expected(16, 40) == sum(numbers(Numbered(batch_size=8), 5, seen=16), [])


def test_every_pass_is_another_permutation() -> None:
    """Passes are permutations, seeds and passes differ."""
    stream = expected(0, 3 * COUNT)
    passes = [stream[i * COUNT : (i + 1) * COUNT] for i in range(3)]
    assert all(sorted(one) == list(range(COUNT)) for one in passes)
    assert len({tuple(one) for one in passes} | {tuple(expected(0, COUNT, seed=1))}) == 4


def test_batch_larger_than_dataset() -> None:
    """One batch can span several passes."""
    assert numbers(Numbered(batch_size=3 * COUNT + 1), 1) == [expected(0, 3 * COUNT + 1)]


def test_iteration_starts_at_current_images_seen() -> None:
    """The position is read when iteration begins, not when the loader is built."""
    seen = [0]
    stream = Stream(4, start=lambda: seen[0])
    assert next(iter(stream)) == range(0, 4)
    seen[0] = 12
    assert next(iter(stream)) == range(12, 16)


def test_flip_depends_only_on_seed_and_position() -> None:
    """Half of the visits are mirrored, for any batching of the stream; other passes mirror others."""
    examples = Numbered(batch_size=1).training()
    flips = Visits(examples, seed=0, flip=True)
    full = flips[range(0, 40 * COUNT)]
    mirrored = full.x[:, 0, 0, 0] > full.x[:, 0, 0, 1]
    plain = Visits(examples, seed=0)[range(0, 40 * COUNT)]
    assert torch.equal(torch.where(mirrored[:, None, None, None], full.x.flip(-1), full.x), plain.x)
    assert abs(mirrored.float().mean() - 0.5) < 0.06  # 4 standard deviations of 920 fair draws
    cut = torch.cat([flips[range(first, first + 46)].x for first in range(0, 40 * COUNT, 46)])
    assert torch.equal(cut, full.x)
    passes = mirrored[torch.argsort(plain.condition, stable=True)].reshape(COUNT, 40)
    assert (passes.float().mean(1) - 0.5).abs().max() < 0.4 and passes.any(1).all()


@pytest.mark.parametrize(("count", "world"), [(23, 1), (23, 2), (23, 4), (1, 2), (8, 2)])
def test_split_evenly_is_exact(count: int, world: int) -> None:
    """Every element once over all ranks, in batches that are full except the last."""
    ranks = [split_evenly(count, 3, rank=rank, world=world) for rank in range(world)]
    assert sorted(i for batches in ranks for batch in batches for i in batch) == list(range(count))
    assert all(len(batch) == 3 for batches in ranks for batch in batches[:-1])
    assert [[i for batch in batches for i in batch] for batches in ranks] == [
        list(range(rank, count, world)) for rank in range(world)
    ]


def test_second_split_by_lightning_is_refused() -> None:
    """Lightning's distributed sampler would pad and split the data again."""
    data = Digits(batch_size=4)
    data.trainer = trainer(0, 2, distributed_sampler=True)
    with pytest.raises(ValueError, match=r"expected Trainer\(use_distributed_sampler=False\)"):
        data.train_dataloader()


@pytest.mark.parametrize("arguments", [{"batch_size": 0}, {"batch_size": 1, "num_workers": -1}])
def test_bad_loader_arguments(arguments: dict[str, int]) -> None:
    """The message contains the expected value."""
    with pytest.raises(ValueError, match="expected"):
        Digits(**arguments)
