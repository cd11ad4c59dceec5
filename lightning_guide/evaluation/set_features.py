"""Features of whole sets of samples: extracted once, in parts, by all processes, and kept on disk (`SetFeatures`)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from lightning_guide.data import Batch
from lightning_guide.evaluation.features.base import FeatureExtractor
from lightning_guide.evaluation.reference.cache import FeatureCache, fingerprint
from lightning_guide.utils.distributed import all_gather_objects, all_reduce_sum, rank_and_world, run_on_all_ranks

__all__ = ["Extracted", "Output", "Outputs", "PartedSet", "Scan", "extract_set", "scan"]


class PartedSet(Protocol):
    """Samples in files, in parts that fit into memory."""

    def __len__(self) -> int: ...

    def parts(self) -> list[range]:
        """Return the numbers of the samples of each part, in order."""

    def read(self, rows: range) -> Tensor:
        """Return samples `rows` (n, *) in stored form."""


@dataclass(frozen=True)
class Scan:
    """Hashes of the parts of a set, in order."""

    parts: tuple[str, ...]

    @property
    def identity(self) -> str:
        """Hash of all samples in their order."""
        return hashlib.sha256("".join(self.parts).encode()).hexdigest()


Output = Literal["spatial", "logits"]


class Outputs(FeatureExtractor):
    """Features of another extractor, followed by more of its outputs, in one tensor."""

    def __init__(self, source: FeatureExtractor, more: Sequence[Output]) -> None:
        """Take the extractor, and the names of its other outputs, in their order."""
        super().__init__()
        self.source, self.more = source, tuple(more)

    def extract(self, x: Tensor) -> Tensor:
        """Return features and more (B, F + *)."""
        return torch.cat([self.source(x), *(getattr(self.source, name)(x) for name in self.more)], dim=1)

    def title(self) -> str:
        """Return the title of the other extractor with the outputs."""
        return f"{self.source.title()} and {', '.join(self.more)}"

    def _load(self) -> torch.nn.Module:
        network: torch.nn.Module = self.source.network()
        return network


class Extracted(FeatureExtractor):
    """Extractor for rows (B, F + S + K) that hold F features already, then S spatial features and K logits."""

    def __init__(self, width: int, places: int = 0) -> None:
        """Take F and S."""
        super().__init__()
        self.width, self.places = width, places

    def extract(self, x: Tensor) -> Tensor:
        """Return the features (B, F)."""
        return x[:, : self.width]

    def spatial(self, x: Tensor) -> Tensor:
        """Return the spatial features (B, S)."""
        return x[:, self.width : self.width + self.places]

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits (B, K)."""
        return x[:, self.width + self.places :]


def scan(samples: PartedSet, done: Callable[[int], None]) -> Scan:
    """Read all samples once and hash them; each process its share. `done` is called with numbers of samples.

    Raises:
        ValueError: with the sentence of each damaged part.
    """
    rank, world = rank_and_world()
    parts = samples.parts()
    here: dict[int, str] = {}
    damaged: dict[int, str] = {}
    for number in range(rank, len(parts), world):
        try:
            here[number] = fingerprint([Batch(samples.read(parts[number]))])[0]
        except ValueError as error:
            damaged[number] = str(error)
        done(len(parts[number]))
    sentences = {number: text for each in all_gather_objects(damaged) for number, text in each.items()}
    if sentences:
        more = f"; and {len(sentences) - 3} more parts" if len(sentences) > 3 else ""
        raise ValueError("; ".join(sentences[number] for number in sorted(sentences)[:3]) + more)
    found = {number: text for each in all_gather_objects(here) for number, text in each.items()}
    return Scan(tuple(found[number] for number in range(len(parts))))


def extract_set(
    samples: PartedSet,
    scanned: Scan,
    extractor: FeatureExtractor,
    *,
    cache: str | Path,
    device: torch.device,
    batch_size: int,
    done: Callable[[int], None],
) -> Tensor:
    """Return the features (N, F) of a set on every process, float32 on the CPU, in the order of the samples.

    Each process extracts its share of the parts and stores each in a file of `cache`; parts that are there already,
    as after an interruption, are read. `done` is called with numbers of samples.

    Raises:
        ValueError: as of the extractor.
    """
    rank, world = rank_and_world()
    parts = samples.parts()
    own: dict[int, Tensor] = {}

    def extract_share() -> None:
        for number in range(rank, len(parts), world):
            rows = parts[number]
            stored = FeatureCache(cache, len(rows))

            def features(rows: range = rows) -> Tensor:
                return torch.cat(list(_batches(samples.read(rows), extractor, device, batch_size)))

            own[number] = stored.get_here(extractor, scanned.parts[number], len(rows), features)
            done(len(rows))

    run_on_all_ranks(extract_share)
    return _together(own, parts)


def _batches(x: Tensor, extractor: FeatureExtractor, device: torch.device, size: int) -> Iterator[Tensor]:
    for part in x.split(size):
        yield extractor(part.to(device)).cpu()


def _together(own: dict[int, Tensor], parts: Sequence[range]) -> Tensor:
    """Return the rows of all processes."""
    width = max(all_gather_objects(max((part.shape[1] for part in own.values()), default=0)))
    total = torch.zeros(parts[-1].stop, width)
    for number in sorted(own):
        total[parts[number].start : parts[number].stop] = own.pop(number)
    return all_reduce_sum(total)
