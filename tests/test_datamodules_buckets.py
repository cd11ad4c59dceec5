"""Aspect-ratio buckets: their sizes, how images are fitted, and the order of training."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from datamodules import TensorExamples
from datamodules.buckets import AspectBuckets, BucketVisits, fit_image
from datamodules.stream import Stream


def test_sizes_have_the_area_of_the_model() -> None:
    sizes = AspectBuckets().sizes((1024, 1024))
    assert {(1024, 1024), (832, 1216), (1216, 832), (768, 1344)} <= set(sizes)
    assert all(h % 64 == w % 64 == 0 and 0.9 < h * w / 1024**2 <= 1 for h, w in sizes)
    assert all(max(h, w) <= 2 * min(h, w) for h, w in sizes)
    assert AspectBuckets(max_ratio=1).sizes((512, 512)) == [(512, 512)]
    assert AspectBuckets(max_ratio=1).sizes((512, 768))[-1] == (512, 768)  # the model's own


@pytest.mark.parametrize(("settings", "size", "message"), [
    ({"max_ratio": 0.5}, (64, 64), "max_ratio >= 1"),
    ({"step": 0}, (64, 64), "step >= 1"),
    ({}, (500, 512), "the size 500x512 is no multiple of the step of buckets, 64 pixels"),
])  # fmt: skip
def test_bad_buckets(settings: dict[str, float], size: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AspectBuckets(**settings).sizes(size)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="block of the buckets is 6; expected a multiple of batch_size, 4"):
        AspectBuckets(block=6).block_of(4)


def test_images_are_cropped_to_the_nearest_ratio_and_scaled() -> None:
    sizes = [(12, 20), (16, 16), (20, 12)]
    ramp = torch.arange(60, dtype=torch.uint8).expand(3, 40, 60)
    wide = fit_image(ramp, sizes)
    assert wide.x.shape == (3, 12, 20) and wide.sizes == (40, 60, 1, 0, 12, 20) and not wide.enlarged
    assert (wide.x[0, 6].float() - (torch.arange(20) * 3 + 1)).abs().max() <= 1  # thirds of the columns
    square = fit_image(ramp[:, :, 10:54], sizes)  # 40 x 44: two columns are cut on each side
    assert square.x.shape == (3, 16, 16) and square.sizes == (40, 44, 0, 1, 16, 16)
    assert square.x[0, 8, 0] >= 12 and square.x[0, 8, -1] <= 51
    assert torch.equal(fit_image(ramp[:, :16, :16], sizes).x, ramp[:, :16, :16])  # unchanged
    assert fit_image(ramp[:, :5, :3], sizes).enlarged


def order(buckets: torch.Tensor, *, block: int, batch: int, count: int, start: int = 0, world: int = 1) -> list[int]:
    """The first elements of a stream, as `world` processes see them together."""
    visits = BucketVisits(TensorExamples(torch.arange(len(buckets))), buckets, block=block, seed=3)
    ranks = [iter(Stream(batch, rank=rank, world=world, start=lambda: start)) for rank in range(world)]
    found: list[int] = []
    while len(found) < count:
        for rank in ranks:
            x = visits[next(rank)].x
            assert len(buckets[x].unique()) == 1
            found += x.tolist()
    return found


BUCKETS = torch.tensor([0, 1, 1, 2, 0, 1, 1, 1, 0, 1, 1])


def test_batches_of_one_bucket_visit_all_equally_often() -> None:
    n, K = len(BUCKETS), 4
    found = order(BUCKETS, block=K, batch=4, count=3 * n * K)
    assert Counter(found[: n * K]) == dict.fromkeys(range(n), K) and Counter(found) == dict.fromkeys(range(n), 3 * K)
    assert found[: n * K] != found[n * K : 2 * n * K]
    of_one = [element for element in found if BUCKETS[element] == 1]  # pass after pass over the bucket
    assert all(len(set(of_one[i : i + 7])) == 7 for i in range(0, len(of_one), 7))


def test_the_order_depends_on_neither_processes_nor_resumption() -> None:
    whole = order(BUCKETS, block=4, batch=4, count=80)
    assert order(BUCKETS, block=4, batch=2, world=2, count=80) == whole
    assert order(BUCKETS, block=4, batch=1, world=4, count=80) == whole
    assert order(BUCKETS, block=4, batch=4, world=2, count=80) == whole
    assert order(BUCKETS, block=4, batch=2, start=24, count=56) == whole[24:]
