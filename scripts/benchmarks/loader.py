"""Throughput of the data loaders relative to torchvision's on the same files, and growth of memory.

    python -m scripts.benchmarks.loader --shards 'DATA/train-*.tar' [--images 20000]

The shards are unpacked to CLASS/KEY.png in a folder that is removed at the end. `torchvision.datasets.ImageFolder` with
`PILToTensor` in a shuffled `DataLoader` reads that folder, `datamodules.Shards` the shards, `datamodules.ImageFolder`
the folder. All decode every image at every visit, in one process, and alternate; printed is the median of the ratios of
CPU time. A line of its own has the cost of a visit when all images are decoded in memory. Memory is the resident set
after 20 passes over that after 2.
"""

from __future__ import annotations

import gc
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torchvision
from torch.utils.data import DataLoader

from datamodules import ImageFolder, Shards
from datamodules.shards import shard_paths
from scripts.lib.command_line import run_script

Loader = Callable[[], Iterator[Any]]


def unpack(shards: str, folder: Path, count: int) -> None:
    """Write the first `count` images as folder/CLASS/KEY.ext."""
    written = 0
    for path in shard_paths(shards):
        with tarfile.open(path) as tar:
            record: dict[str, bytes] = {}
            for member in tar:
                key, _, suffix = member.name.partition(".")
                record[suffix] = tar.extractfile(member).read()  # type: ignore[union-attr]
                if len(record) == 2:
                    label = record.pop("cls").decode().strip()
                    ((suffix, content),) = record.items()
                    place = folder / label / f"{path.stem}-{Path(key).name}.{suffix}"
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.write_bytes(content)
                    record, written = {}, written + 1
                    if written == count:
                        return


def rate(loader: Loader, batches: int, batch: int) -> float:
    """Return images per second over some batches, after one batch."""
    stream = loader()
    next(stream)
    begin = time.process_time()
    for _ in islice(stream, batches):
        pass
    return batches * batch / (time.process_time() - begin)


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def bench(
    *, shards: str, images: int = 50_000, batch: int = 128, batches: int = 60, rounds: int = 5, classes: int = 10
) -> None:
    """Print the comparison.

    Args:
        shards: tar shards of images with labels.
        images: number of images.
        batch: images in a batch.
        batches: batches of each measurement.
        rounds: rounds of all measurements in turn.
        classes: number of labels.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        unpack(shards, folder, images)
        reference = torchvision.datasets.ImageFolder(name, transform=torchvision.transforms.PILToTensor())

        def theirs() -> Iterator[Any]:
            return iter(DataLoader(reference, batch_size=batch, shuffle=True, drop_last=True))

        def ours(data: Shards | ImageFolder) -> Loader:
            return lambda: iter(data.train_dataloader())

        files = ImageFolder(name, num_classes=classes, batch_size=batch, cache=False)
        tars = Shards(shards, shards, num_classes=classes, batch_size=batch, cache=False)
        cached = Shards(shards, shards, num_classes=classes, batch_size=batch, cache=True)
        loaders = {"shards": ours(tars), "folder": ours(files), "shards, decoded in memory": ours(cached)}
        rows = [[rate(loader, batches, batch) for loader in (theirs, *loaders.values())] for _ in range(rounds)]
        print(f"{'ImageFolder':28s} {median(row[0] for row in rows):9.0f} images per second and core")
        for i, what in enumerate(loaders, 1):
            ratios = sorted(row[i] / row[0] for row in rows)
            speed = median(row[i] for row in rows)
            print(f"{what:28s} {speed:9.0f}  x{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
        few = Shards(shard_paths(shards)[0].as_posix(), shard_paths(shards)[0].as_posix(), num_classes=classes,
                     batch_size=batch, cache=False)  # fmt: skip
        steps = -(-len(few.training()) // batch)
        stream, memory = iter(few.train_dataloader()), {}
        for visit in range(1, 21):
            for _ in islice(stream, steps):
                pass
            memory[visit] = resident()
        print(f"memory after 20 passes over one shard / after 2: {memory[20] / memory[2]:.4f}")


if __name__ == "__main__":
    run_script(bench)
