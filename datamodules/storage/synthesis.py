"""Interruptible drawing of a set of samples into tar shards, by all processes (`Synthesis`).

The samples are split into chunks; each is drawn in one batch, by seed, and written atomically to one shard, with the
same bytes on any process. The file `synthetic.json` in the folder of the shards describes the set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed
from torch import Tensor
from webdataset import TarWriter

from datamodules.storage.image_codec import decode_sample
from datamodules.storage.tar_index import SAMPLES, index_shard
from lightning_guide.data import DataInterface
from lightning_guide.denoiser import Denoiser
from lightning_guide.evaluation.sampling_loop import build_condition
from lightning_guide.inference import is_diverged
from lightning_guide.samplers import Sampler
from lightning_guide.seeds import SampleSeeds, mix
from lightning_guide.utils.devices import to_device
from lightning_guide.utils.files import atomic
from lightning_guide.utils.images import encode_sample
from lightning_guide.utils.terminal import Progress

__all__ = ["Synthesis"]


@dataclass(frozen=True)
class Synthesis:
    """A synthetic set to be drawn.

    Attributes:
        denoiser: the model, or a guidance without unresolved references.
        sampler: the sampler.
        labels: labels of the n samples, or numbers of their prompts, int64 (n,); -1 draws without.
        seed: sample i depends on (seed, i) alone, and shares no noise with evaluations.
        chunk_size: number of samples in one network call and in one shard.
        folder: folder of the shards.
        data: whose prompts condition a model that takes embeddings.
    """

    denoiser: Denoiser
    sampler: Sampler
    labels: Tensor
    seed: int
    chunk_size: int
    folder: Path
    data: DataInterface

    @property
    def shards(self) -> list[Path]:
        """Paths of the shards of all chunks."""
        return [self.folder / f"synthetic-{c:06d}.tar" for c in range(-(-len(self.labels) // self.chunk_size))]

    def write(self, stored: Callable[[Tensor], Tensor], device: torch.device, *, rank: int = 0, world: int = 1) -> None:
        """Draw the missing chunks c = `rank` modulo `world`; `stored` gives the stored form of samples x.

        Raises:
            ValueError: if samples are not finite or out of bounds.
        """
        chunks = list(enumerate(self.shards))[rank::world]
        with Progress(f"synthesize {self.folder}", len(chunks), unit="shards", silent=rank > 0) as bar:
            for number, path in chunks:
                first = number * self.chunk_size
                indices = range(first, min(first + self.chunk_size, len(self.labels)))
                if _is_complete(path, len(indices)):
                    bar.skip()
                else:
                    # waits once a chunk: the host writes the file
                    self._write_chunk(path, indices, stored(self._draw(indices, device)).cpu())
                    bar.add()

    def _draw(self, indices: range, device: torch.device) -> Tensor:
        """Draw the samples `indices`."""
        seeds = SampleSeeds(mix(self.seed, "synthesis"), indices)
        labels = to_device(self.labels[indices.start : indices.stop], device)
        condition = build_condition(self.denoiser, labels, self.data)
        x = self.sampler.sample(self.denoiser, seeds=seeds, condition=condition, device=device).x
        bad = is_diverged(x, self.denoiser.sigma_data)
        if bool(bad.any()):  # waits once a chunk: what is wrong is not stored
            raise ValueError(
                f"{int(bad.sum())} of the samples {indices.start} to {indices.stop - 1} of seed {self.seed} are not "
                f"finite or out of bounds, first {indices[int(bad.nonzero()[0])]}; the weight of the guidance may "
                f"be too large, or the model diverged (none of them was written to {self.folder})"
            )
        return x

    def _write_chunk(self, path: Path, indices: range, x: Tensor) -> None:
        """Write one shard; the same samples give the same bytes."""
        texts = self.data.prompt_texts if self.denoiser.token_channels else None
        with atomic(path) as temporary, temporary.open("wb") as file, TarWriter(file, mtime=0) as tar:
            for index, sample in zip(indices, x, strict=True):
                extension, content = encode_sample(sample)
                record: dict[str, str | bytes] = {"__key__": f"{index:08d}", extension: content}
                if (label := int(self.labels[index])) >= 0:
                    record["cls"] = str(label)
                    record |= {} if texts is None else {"txt": texts[label]}
                tar.write(record)


def _is_complete(path: Path, records: int) -> bool:
    """Return whether a shard exists with all its records, and each can be decoded."""
    try:
        index = index_shard(path, num_classes=0, extensions=SAMPLES)
        content = path.read_bytes()
        for offset, size in zip(index.offsets.tolist(), index.sizes.tolist(), strict=True):
            decode_sample(content[offset : offset + size])
        return len(index) == records
    except ValueError:
        return False
