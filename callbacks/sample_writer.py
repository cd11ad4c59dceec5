"""Writer of predicted samples to PNG files, npz archives or WebDataset shards, while they are drawn."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from callbacks.output import prompts_of, write_png
from callbacks.sample_folder import SampleFolder
from callbacks.sample_formats import NpzArchive, PngFolder, SampleFormat, TarShards, png_name
from callbacks.sample_overview import draw_overview
from lightning_guide.evaluation.evaluation import Evaluation
from lightning_guide.evaluation.sampling_loop import DrawnSamples, SampleStore
from lightning_guide.guidance import Main
from lightning_guide.modules.evaluation_mixin import EvaluatedModule
from lightning_guide.snapshots.file import checksum
from lightning_guide.utils.distributed import all_gather_objects
from lightning_guide.utils.files import atomic
from lightning_guide.utils.locks import FolderLock
from lightning_guide.utils.resume import describe_settings

__all__ = ["SampleWriter"]


Format = Literal["png", "npz", "shards"]
OVERVIEW, PROMPTS = "samples.png", "prompts.csv"
_END_OF_PNG = b"IEND\xaeB`\x82"


class SampleWriter(SampleStore, pl.Callback):
    """Writer of the samples of `predict`. The files depend neither on the batch size nor on the number of processes.

    - png: `<folder>/<thousand>/<index>.png`, images only.
    - npz: `<folder>/samples.npz` with `x`, `index` and `condition`, sorted by index. Held in memory until the end.
    - shards: WebDataset shards `<folder>/samples-<rank>-<number>.tar` with `.png` or `.npy`, and `.cls`. The assignment
      of samples to shards does depend on the number of processes.

    `prompts.csv` has the prompt of each sample, if their texts are known.

    `samples.json` in the folder records the settings of the prediction and its files. The folder holds exactly what the
    last prediction drew: files that it records from an earlier one are removed, others never. An interrupted prediction
    continues where it stopped if `png` is the only format; otherwise it is drawn anew. With this callback
    `trainer.predict` returns no samples, since it would keep them all in memory.

    Attributes:
        written: the folder of the newest prediction.
    """

    def __init__(
        self, folder: str | None = None, *, formats: Sequence[Format] | None = None, records_per_shard: int = 1000
    ) -> None:
        """Configure the files.

        Args:
            folder: default: `samples/<guidance>-seed<seed>` in the run folder, with a number if that holds samples of
                other settings.
            formats: default: png for images; npz for other data, with an image of the samples, `samples.png`.
            records_per_shard: number of samples in one shard.

        Raises:
            ValueError: if `formats` is empty or holds an unknown one, or `records_per_shard` is below 1.
        """
        super().__init__()
        known = get_args(Format)
        if formats is not None and (not formats or any(name not in known for name in formats)):
            raise ValueError(f"SampleWriter needs formats out of {', '.join(known)}, got {list(formats)}")
        if records_per_shard < 1:
            raise ValueError(f"SampleWriter needs records_per_shard >= 1, got {records_per_shard}")
        self.folder, self.records_per_shard = folder, records_per_shard
        self.formats = None if formats is None else tuple(dict.fromkeys(formats))
        self.written: Path | None = None
        self._folder: SampleFolder | None = None
        self._resumes = False
        self._skipped: list[int] = []
        self._writers: list[SampleFormat] = []
        self._lock: FolderLock | None = None

    def on_predict_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Keep no samples in memory."""
        trainer.predict_loop.return_predictions = False
        self._folder, self._resumes, self._skipped, self._writers = None, False, [], []

    def on_predict_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Choose the folder before the first batch, once the guidance is resolved.

        Raises:
            ValueError: if the folder holds files of the same names that no prediction has recorded.
        """
        if self._folder is not None or not isinstance(pl_module, EvaluatedModule):
            return
        found: SampleFolder | str = ""
        if trainer.is_global_zero:
            try:
                found = self._choose(trainer, pl_module)
                self._lock = FolderLock(found.path / ".lock", what=f"the folder of samples {found.path}").acquire()
            except ValueError as error:
                found = str(error)
        found = trainer.strategy.broadcast(found)
        if isinstance(found, str):
            raise ValueError(found)
        self._folder = found
        self.written = self._folder.path
        self._resumes = self._folder.same and not self._folder.finished and self.formats in (None, ("png",))

    def holds(self, index: Tensor) -> bool:
        """Return whether an interrupted prediction has written all samples of a batch."""
        if self._folder is None or not self._resumes:
            return False
        paths = [self._folder.path / png_name(i) for i in index.tolist()]
        if not all(path.is_file() and path.read_bytes()[-len(_END_OF_PNG) :] == _END_OF_PNG for path in paths):
            return False
        self._skipped += index.tolist()
        return True

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Write one batch; the first one opens the files."""
        if self._folder is None or not isinstance(outputs, DrawnSamples | None):
            return
        # waits for each column of a batch: files are written by the host
        samples = None if outputs is None else DrawnSamples(*(column.detach().cpu() for column in outputs))
        if not self._writers:
            self._open(trainer, pl_module, samples)
        if samples is not None:
            for writer in self._writers:
                writer.write(samples)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Complete the files; process 0 merges them once all processes are done, and removes those of earlier ones."""
        if self._folder is None:
            return
        for writer in self._writers:
            writer.close()
        trainer.strategy.barrier("samples written")
        names = [png_name(index) for index in self._skipped]
        names += [name for writer in self._writers for name in writer.written]
        written = {name for each in all_gather_objects(names) for name in each}
        if trainer.is_global_zero:
            for writer in self._writers:
                written |= set(writer.merge())
            self._folder.finish(written | self._draw_overview() | self._write_prompts(_prompts(trainer, pl_module)))
        trainer.strategy.barrier("samples merged")
        self._writers = []
        self._unlock()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Remove incomplete files."""
        for writer in self._writers:
            writer.discard()
        self._writers = []
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _choose(self, trainer: pl.Trainer, module: EvaluatedModule) -> SampleFolder:
        """Folder of the prediction; on process 0."""
        evaluation, denoiser = module.prediction.evaluations["prediction"], module.prediction.resolved["prediction"]
        settings = _settings(evaluation)
        prompts = _prompts(trainer, module)
        settings |= describe_settings("prompts", list(prompts.values())) if prompts else {}
        # a wait for each weight, once in a prediction: the host computes the hash
        settings["weights_sha256"] = checksum({k: v.cpu() for k, v in denoiser.state_dict().items()}, {})
        writers = self._build(Path(), self.formats or ("png", "npz"), trainer)
        names = [name for each in writers for name in each.names(_indices(evaluation))]
        names += [PROMPTS] if prompts else []
        if self.folder is None:
            path = Path(trainer.default_root_dir) / "samples" / _title(evaluation)
            return SampleFolder.free(path, settings, lambda: names)
        folder = SampleFolder(Path(self.folder).expanduser(), settings)
        if name := folder.foreign(names):
            raise ValueError(
                f"{folder.path} holds {name}, which no prediction has recorded in samples.json; expected an empty "
                "folder, or one of an earlier prediction"
            )
        return folder

    def _open(self, trainer: pl.Trainer, module: EvaluatedModule, samples: DrawnSamples | None) -> None:
        """Create a writer for each format, and record their files; on all processes."""
        assert self._folder is not None
        image = samples is None or (samples.x.ndim == 4 and samples.x.dtype == torch.uint8)
        self._writers = self._build(self._folder.path, self.formats or ("png" if image else "npz",), trainer)
        if samples is not None:
            for writer in self._writers:
                writer.check(samples)
        if trainer.is_global_zero:
            indices = _indices(module.prediction.evaluations["prediction"])
            overview = [] if image or self.formats is not None else [OVERVIEW]
            overview += [PROMPTS] if _prompts(trainer, module) else []
            self._folder.begin([*(name for each in self._writers for name in each.names(indices)), *overview])
        trainer.strategy.barrier("samples begin")

    def _build(self, folder: Path, formats: Sequence[str], trainer: pl.Trainer) -> list[SampleFormat]:
        place = (folder, trainer.global_rank, trainer.world_size)
        kinds = {"png": PngFolder, "npz": NpzArchive}
        return [
            kinds[name](*place) if name in kinds else TarShards(*place, records=self.records_per_shard)
            for name in formats
        ]

    def _write_prompts(self, prompts: dict[int, str]) -> set[str]:
        """Write the prompt of each sample beside the samples, if there are any; return the name."""
        assert self._folder is not None
        if not prompts:
            return set()
        with atomic(self._folder.path / PROMPTS, durable=False) as temporary:
            with temporary.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([("index", "prompt"), *prompts.items()])
        return {PROMPTS}

    def _draw_overview(self) -> set[str]:
        """Draw the samples of the archive if they are no images and no format was chosen; return the name."""
        assert self._folder is not None
        if OVERVIEW not in self._folder.files:
            return set()
        with np.load(self._folder.path / "samples.npz") as archive:
            image = draw_overview(torch.from_numpy(archive["x"]))
        if image is None:
            return set()
        write_png(self._folder.path / OVERVIEW, image)
        return {OVERVIEW}


def _prompts(trainer: pl.Trainer, module: EvaluatedModule) -> dict[int, str]:
    """Return sample -> text of its prompt; empty if the texts are not known."""
    if prompts_of(trainer, torch.empty(0)) is None:
        return {}
    drawn: Any = module.sample_sets("predict")[0][0]
    index, condition = torch.tensor([list(drawn[i]) for i in range(len(drawn))]).unbind(1)
    return dict(zip(index.tolist(), prompts_of(trainer, condition) or [], strict=True))


def _indices(evaluation: Evaluation) -> range:
    return range(evaluation.first_index, evaluation.first_index + evaluation.num_samples * evaluation.repetitions)


def _settings(evaluation: Evaluation) -> dict[str, Any]:
    """Return what a sample depends on besides its index and the weights."""
    names = ("guidance", "sampler", "seed", "labels", "num_classes", "start")
    return {k: v for name in names for k, v in describe_settings(name, getattr(evaluation, name)).items()}


def _title(evaluation: Evaluation) -> str:
    """Name a folder by guidance, the first of its numbers, its weight, and seed: ``Autoguidance-2-seed0``."""
    guidance = evaluation.guidance
    numbers = [
        value
        for name, value in describe_settings("guidance", guidance).items()
        if name.count(".") == 1 and isinstance(value, int | float) and not isinstance(value, bool)
    ]
    kind = "unguided" if isinstance(guidance, Main) else type(guidance).__name__
    return "-".join([kind, *[f"{number:g}" for number in numbers[:1]], f"seed{evaluation.seed}"])
