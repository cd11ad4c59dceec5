"""Drawing a set of samples into tar shards, by all processes, so that it can be interrupted and is made only once.

A set of n samples is cut into chunks; each is drawn in one batch, by seed, and becomes one shard, written at once and
to the same bytes whoever writes it. `synthetic.json` beside the shards says what the set was made of.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from tqdm import tqdm
from webdataset import TarWriter

from datamodules.storage.image_codec import decode_sample
from datamodules.storage.tar_index import SAMPLES, index_shard
from lightning_guide.data import DataInterface
from lightning_guide.denoiser import Denoiser
from lightning_guide.inference import is_diverged
from lightning_guide.samplers import Sampler
from lightning_guide.seeds import SampleSeeds, mix
from lightning_guide.utils.files import atomic
from lightning_guide.utils.images import encode_sample

__all__ = ["Synthesis", "check_settings", "first_difference"]


@dataclass(frozen=True)
class Synthesis:
    """A set to be drawn.

    Attributes:
        denoiser: the model, or a guidance, with nothing left to resolve.
        sampler: how it is drawn.
        labels: of the n samples, int64 (n,); -1 draws without a label.
        seed: sample i depends on (seed, i) alone, and on no seed of an evaluation.
        chunk_size: samples in one call of the network, and in one shard.
        folder: where the shards lie.
    """

    denoiser: Denoiser
    sampler: Sampler
    labels: Tensor
    seed: int
    chunk_size: int
    folder: Path

    @property
    def shards(self) -> list[Path]:
        """The files of all chunks."""
        return [self.folder / f"synthetic-{c:06d}.tar" for c in range(-(-len(self.labels) // self.chunk_size))]

    def write(self, data: DataInterface, device: torch.device, *, rank: int = 0, world: int = 1) -> None:
        """Draws the chunks c = `rank` modulo `world` that are not there yet; samples are stored as `data` stores them.

        Raises:
            ValueError: if samples are not finite or out of all bounds.
        """
        mine = list(enumerate(self.shards))[rank::world]
        with tqdm(total=len(mine), unit="shard", desc=f"{self.folder}", disable=True if rank else None) as bar:
            for number, path in mine:
                first = number * self.chunk_size
                indices = range(first, min(first + self.chunk_size, len(self.labels)))
                if not _whole(path, len(indices)):
                    self._write_chunk(path, indices, self._drawn(data, indices, device))
                bar.update()

    def _drawn(self, data: DataInterface, indices: range, device: torch.device) -> Tensor:
        """The samples `indices` in stored form, on the CPU."""
        seeds = SampleSeeds(mix(self.seed, "synthesis"), indices)
        labels = self.labels[indices.start : indices.stop].to(device) if self.denoiser.num_classes else None
        x = self.sampler.sample(self.denoiser, seeds=seeds, condition=labels, device=device).x
        bad = is_diverged(x, self.denoiser.sigma_data)
        if bool(bad.any()):
            raise ValueError(
                f"{int(bad.sum())} of the samples {indices.start} to {indices.stop - 1} of seed {self.seed} are not "
                f"finite or out of all bounds, first {indices[int(bad.nonzero()[0])]}; the weight of the guidance may "
                f"be too large, or the model be diverged (nothing of them was written to {self.folder})"
            )
        return data.decode(x).cpu()

    def _write_chunk(self, path: Path, indices: range, x: Tensor) -> None:
        """One shard; the same samples give the same bytes."""
        with atomic(path) as temporary, temporary.open("wb") as file, TarWriter(file, mtime=0) as tar:
            for index, sample in zip(indices, x, strict=True):
                extension, content = encode_sample(sample)
                record: dict[str, str | bytes] = {"__key__": f"{index:08d}", extension: content}
                if int(self.labels[index]) >= 0:
                    record["cls"] = str(int(self.labels[index]))
                tar.write(record)


def check_settings(path: Path, settings: dict[str, Any], counts: list[int]) -> None:
    """Refuses a folder whose set was made with other `settings`, plain data, or has other `counts` of the classes.

    Raises:
        ValueError: naming the first of them; also if there are shards but no description.
    """
    shards = sorted(path.parent.glob("*.tar"))
    if not shards:  # a description alone binds nobody: its samples may have been refused
        return
    if not path.exists():
        raise ValueError(f"{shards[0]} is there without {path.name}; expected a folder without shards")
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        known = {**told["settings"], "counts": told["counts"]}
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} does not describe a synthetic set; expected another folder") from None
    difference = first_difference(known, json.loads(json.dumps({**settings, "counts": counts})))
    if difference:
        raise ValueError(
            f"{path.parent} holds samples that were made with other settings: {difference}; expected the same ones, or "
            "another folder"
        )


def first_difference(known: Any, wanted: Any, where: str = "") -> str | None:
    """Where two trees of plain data first differ, in words."""
    if isinstance(known, dict) and isinstance(wanted, dict):
        keys = [*known, *(key for key in wanted if key not in known)]
        pairs = [(key, known.get(key, "nothing"), wanted.get(key, "nothing")) for key in keys]
        found = (first_difference(a, b, f"{where}.{key}" if where else key) for key, a, b in pairs)
        return next((difference for difference in found if difference), None)
    return None if known == wanted else f"{where} was {known!r} and is now {wanted!r}"


def _whole(path: Path, records: int) -> bool:
    """Whether a shard is there with all its records, and each can be decoded."""
    try:
        index = index_shard(path, num_classes=0, extensions=SAMPLES)
        content = path.read_bytes()
        for offset, size in zip(index.offsets.tolist(), index.sizes.tolist(), strict=True):
            decode_sample(content[offset : offset + size])
        return len(index) == records
    except ValueError:
        return False
