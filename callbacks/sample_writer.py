"""Writer of predicted samples to PNG files, npz archives or WebDataset shards, while they are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import lightning.pytorch as pl

from callbacks.sample_formats import NpzArchive, PngFolder, SampleFormat, TarShards
from lightning_guide.evaluation.sampling_loop import DrawnSamples

__all__ = ["SampleWriter"]


Format = Literal["png", "npz", "shards"]


class SampleWriter(pl.Callback):
    """Writer of the samples of `predict`. The files depend neither on the batch size nor on the number of processes.

    - png: `<folder>/<thousand>/<index>.png`, images only.
    - npz: `<folder>/samples.npz` with `x`, `index` and `condition`, sorted by index. Held in memory until the end.
    - shards: WebDataset shards `<folder>/samples-<rank>-<number>.tar` with `.png` or `.npy`, and `.cls`. The assignment
      of samples to shards does depend on the number of processes.

    A prediction that is restarted after an interruption writes the same names. With this callback `trainer.predict`
    returns no samples, since it would keep them all in memory.
    """

    def __init__(
        self, folder: str | None = None, *, formats: Sequence[Format] = ("png",), records_per_shard: int = 1000
    ) -> None:
        """Configure the files; `folder` None is `samples` in the run folder.

        Raises:
            ValueError: if `formats` is empty or holds an unknown one, or `records_per_shard` is below 1.
        """
        super().__init__()
        known = get_args(Format)
        if not formats or any(name not in known for name in formats):
            raise ValueError(f"SampleWriter needs formats out of {', '.join(known)}, got {list(formats)}")
        if records_per_shard < 1:
            raise ValueError(f"SampleWriter needs records_per_shard >= 1, got {records_per_shard}")
        self.folder, self.formats, self.records_per_shard = folder, tuple(dict.fromkeys(formats)), records_per_shard
        self._writers: list[SampleFormat] = []

    def on_predict_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Create the folder and one writer for each format."""
        trainer.predict_loop.return_predictions = False
        folder = Path(trainer.default_root_dir) / "samples" if self.folder is None else Path(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._writers = [self._writer(name, folder, trainer.global_rank, trainer.world_size) for name in self.formats]

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Write one batch."""
        if isinstance(outputs, DrawnSamples):
            samples = DrawnSamples(*(column.detach().cpu() for column in outputs))
            for writer in self._writers:
                writer.write(samples)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Complete the files; process 0 merges them once all processes are done."""
        for writer in self._writers:
            writer.close()
        trainer.strategy.barrier("samples written")
        if trainer.is_global_zero:
            for writer in self._writers:
                writer.merge()
        trainer.strategy.barrier("samples merged")
        self._writers = []

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Remove incomplete files."""
        for writer in self._writers:
            writer.discard()
        self._writers = []

    def _writer(self, name: str, folder: Path, rank: int, world: int) -> SampleFormat:
        """Return a writer of the format `name`."""
        if name == "shards":
            return TarShards(folder, rank, world, records=self.records_per_shard)
        return (PngFolder if name == "png" else NpzArchive)(folder, rank, world)
