"""What is measured by `scripts.benchmarks.scale`: for each size, the set-up and then the work to be timed."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from PIL import Image

from datamodules.shards import Shards
from datamodules.stream import Stream
from lightning_guide.data import Batch, SampleBatch
from lightning_guide.denoiser import Denoiser
from lightning_guide.evaluation import Evaluation, FrechetDistance, KernelDistance, PrecisionRecall, RawPixels
from lightning_guide.evaluation.metrics.base import SampleMetric
from lightning_guide.evaluation.sampling_loop import SamplingLoop
from lightning_guide.guidance.guided import Guided
from lightning_guide.inference import fuse_weights
from lightning_guide.networks import EDM2UNet, PointMLP
from lightning_guide.noise import KarrasGrid
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.samplers import Euler
from lightning_guide.search.gaussian_process import smooth
from lightning_guide.search.results_file import ResultsFile
from lightning_guide.seeds import SampleSeeds
from lightning_guide.snapshots import SnapshotStore

__all__ = ["CASES", "Case"]

Work = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One kind of work at growing `sizes`; `prepare(size, folder)` returns (what the cost is compared with, work)."""

    name: str
    prepare: Callable[[int, Path], tuple[float, Work]]
    sizes: Sequence[int]

    @property
    def tiny(self) -> Case:
        """The same with its two smallest sizes."""
        return replace(self, sizes=self.sizes[:2])


def _points(seed: int = 0) -> Denoiser:
    torch.manual_seed(seed)
    return Preconditioned(PointMLP([2], width=32, layers=2)).eval()


def _evaluation(count: int, metric: SampleMetric, network: Denoiser, *, steps: int = 4) -> Work:
    """Draw `count` samples in batches of 250 and compute a metric, as an evaluation does."""
    sampler = Euler(KarrasGrid(steps, sigma_min=0.1, sigma_max=5.0))
    evaluation = Evaluation(sampler=sampler, num_samples=count, batch_size=250)
    generator = torch.Generator().manual_seed(0)
    metric.prepare([Batch(torch.randn(2000, *network.data_shape, generator=generator))])
    data = cast(Any, SimpleNamespace(decode=lambda x: x))

    @torch.no_grad()
    def work() -> dict[str, float]:
        models = cast(Any, SimpleNamespace(main=network, prompts=None))
        loop = SamplingLoop.start("scale", evaluation, models, {"metric": metric})
        for first in range(0, count, 250):
            index = torch.arange(first, min(first + 250, count))
            loop.draw(SampleBatch(index, torch.full_like(index, -1)), data)
        return loop.finish(torch.device("cpu"), contain=lambda what: nullcontext())

    return work


def samples(count: int, folder: Path) -> tuple[float, Work]:
    """Evaluation of points by the Frechet distance."""
    return count, _evaluation(count, FrechetDistance(RawPixels()), _points())


def kernel_samples(count: int, folder: Path) -> tuple[float, Work]:
    """Evaluation of points by the kernel distance."""
    return count, _evaluation(count, KernelDistance(RawPixels()), _points(), steps=1)


def neighbor_samples(count: int, folder: Path) -> tuple[float, Work]:
    """Evaluation of points by precision and recall."""
    return count, _evaluation(count, PrecisionRecall(RawPixels()), _points(), steps=1)


def _call(network: Denoiser, batch: int, side: int) -> Work:
    x, sigma = torch.randn(batch, 3, side, side), torch.ones(())
    return torch.no_grad()(lambda: network(x, sigma))


def _unet(side: int, channels: int) -> Denoiser:
    torch.manual_seed(0)
    network = EDM2UNet(
        [3, side, side], model_channels=channels, channel_mult=[1, 2, 2], num_blocks=1, attention_resolutions=[]
    )
    return fuse_weights(Preconditioned(network).eval())


def resolution(side: int, folder: Path) -> tuple[float, Work]:
    """Network call on images of `side` x `side` pixels, compared with their pixels."""
    return side**2, _call(_unet(side, 32), 4, side)


def parameters(channels: int, folder: Path) -> tuple[float, Work]:
    """Network call of a U-Net with so many model channels, compared with its parameters."""
    network = _unet(16, channels)
    return sum(each.numel() for each in network.state_dict().values()), _call(network, 4, 16)


def negatives(count: int, folder: Path) -> tuple[float, Work]:
    """Guided sampling with so many guiders, compared with its networks."""
    guided = Guided([_points(i + 1) for i in range(count)], [1.5] * count, positive=_points())
    sampler = Euler(KarrasGrid(8, sigma_min=0.1, sigma_max=5.0))

    @torch.no_grad()
    def work() -> object:
        return sampler.sample(guided, seeds=SampleSeeds(0, range(64)), condition=None, device=torch.device("cpu"))

    return count + 1, work


RECORDS = 4  # in a shard


def _shards(count: int, folder: Path) -> Shards:
    """Write `count` shards of four images each, links to one file, and return their datamodule."""
    first = folder / "shard-000000.tar"
    with tarfile.open(first, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(RECORDS):
            content = io.BytesIO()
            Image.new("RGB", (8, 8), (number, 0, 0)).save(content, "png")
            for extension, text in (("png", content.getvalue()), ("cls", b"1")):
                member = tarfile.TarInfo(f"{number:04d}.{extension}")
                member.size = len(text)
                tar.addfile(member, io.BytesIO(text))
    for number in range(1, count):
        os.link(first, folder / f"shard-{number:06d}.tar")
    return _opened(folder)


def _opened(folder: Path) -> Shards:
    return Shards(str(folder / "shard-*.tar"), str(folder / "shard-000000.tar"), num_classes=10, cache=False)


def shard_index(count: int, folder: Path) -> tuple[float, Work]:
    """From the names of shards to their indexed images."""
    _shards(count, folder)
    return count, lambda: _opened(folder).training()


def shard_reading(count: int, folder: Path) -> tuple[float, Work]:
    """Sixteen batches of 64 images at random of indexed shards: does not depend on their number."""
    data = _shards(count, folder)
    visits, positions = data.visits(), Stream(64)

    def work() -> None:
        for _, batch in zip(range(16), positions, strict=False):
            visits[batch]

    return count, work


def _stored(folder: Path, count: int) -> SnapshotStore:
    """Save two averages of a tiny network at each of `count` / 2 times."""
    store, network = SnapshotStore(folder), Preconditioned(PointMLP([2], width=4, layers=1, features=4))
    for number in range(count // 2):
        for width in (0.05, 0.1):
            store.save(network.state_dict(), images=1000 * (number + 1), sigma_rel=width, recipe=network.recipe)
    return store


def saving(count: int, folder: Path) -> tuple[float, Work]:
    """Saving so many snapshots of a tiny network, one after another."""
    return count, lambda: _stored(folder, count)


def listing(count: int, folder: Path) -> tuple[float, Work]:
    """Listing a folder of snapshots."""
    _stored(folder, count)
    return count, lambda: SnapshotStore(folder).entries()


def reconstruction(count: int, folder: Path) -> tuple[float, Work]:
    """Rebuilding one average that is not stored, from a folder of snapshots."""
    _stored(folder, count)
    return count, lambda: SnapshotStore(folder).tensors(images=1000 * (count // 2), sigma_rel=0.075)


def search_points(count: int, folder: Path) -> tuple[float, Work]:
    """Recording the results of so many points of a sweep, each with the 32 values of its interval."""

    def work() -> None:
        ledger = ResultsFile(folder / "sweep.json", {"points": count})
        values = {"fd": 1.25, "precision": 0.5, "recall": 0.25, "nfe": 35.0, "samples": 1000.0, "seconds": 2.0}
        recorded = ledger.content.setdefault("points", {})
        for number in range(count):
            name = f"weight={number}"
            recorded[name] = {"axes": {"weight": number}, "values": values, "without": [values] * 32}
            ledger.write_point(name)

    return count, work


def search_model(count: int, folder: Path) -> tuple[float, Work]:
    """Smoothing the scores of so many points of a search by a Gaussian process."""
    x, y = torch.rand(count, 3), torch.rand(count)
    return count, lambda: smooth(x, y, torch.full((count,), 1000), x)


CASES = [
    Case("samples, Frechet distance", samples, (100, 1000, 10_000, 50_000)),
    Case("samples, kernel distance", kernel_samples, (1000, 2000, 4000, 8000)),
    Case("samples, precision and recall", neighbor_samples, (500, 1000, 2000, 4000)),
    Case("pixels", resolution, (8, 16, 32, 64)),
    Case("parameters", parameters, (16, 32, 64, 128)),
    Case("networks of a guidance", negatives, (1, 3, 7, 15, 31)),
    Case("shards, index", shard_index, (10, 100, 1000, 10_000)),
    Case("shards, reading", shard_reading, (10, 100, 1000, 10_000)),
    Case("snapshots, saving all", saving, (10, 100, 500, 2000)),
    Case("snapshots, listing", listing, (10, 100, 500, 2000)),
    Case("snapshots, rebuilding one", reconstruction, (10, 100, 500, 2000)),
    Case("points of a search, recording", search_points, (10, 50, 200, 500)),
    Case("points of a search, smoothing", search_model, (10, 50, 200, 800)),
]
