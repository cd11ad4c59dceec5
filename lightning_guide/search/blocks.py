"""Blocks of samples, drawn by the test loop of a trainer and stored as sums of the metrics."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightning_guide.data import DataInterface, SampleBatch
from lightning_guide.denoiser import Models
from lightning_guide.evaluation.evaluation import Evaluation
from lightning_guide.evaluation.metrics.base import SampleMetric
from lightning_guide.evaluation.runner import GuidedEvaluations, StrictEvaluations
from lightning_guide.evaluation.sampling_loop import DrawnSamples, SamplingLoop, add_results
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.search.rebuilt_guiders import RebuiltGuiders
from lightning_guide.search.results_file import named_runs, with_identities
from lightning_guide.search.scores import ScoreBlock, Scorer, Scores, leave_one_out
from lightning_guide.search.space import Point, Space
from lightning_guide.utils.distributed import rank_and_world, run_on_all_ranks
from lightning_guide.utils.errors import as_value_error
from lightning_guide.utils.files import atomic, remove_temporary
from lightning_guide.utils.terminal import Progress

__all__ = ["BlockEvaluations", "SampledBlocks"]


Totals = dict[str, Tensor]


COST_KEY = ""  # key, in place of a metric's name, of network calls, samples and seconds


class BlockEvaluations(StrictEvaluations):
    """Evaluations that end with the sums of their metrics over all ranks instead of results."""

    def __init__(self, metrics: Mapping[str, SampleMetric], *, before: Callable[[], None]) -> None:
        """`metrics` are prepared once for all blocks; `before` is called first, on all ranks."""
        super().__init__({}, metrics)
        self.before = before
        self.totals: dict[str, Totals] = {}
        self.progress = Progress("", None, unit="samples", silent=True)

    @contextmanager
    def contain(self, what: str) -> Iterator[None]:
        """As `StrictEvaluations`; on one of several ranks any error ends the search, since the others may wait."""
        with super().contain(what) if rank_and_world()[1] == 1 else nullcontext():
            yield

    def step(self, number: int, batch: SampleBatch, data: DataInterface) -> DrawnSamples | None:
        """As `GuidedEvaluations.step`, with progress: other ranks draw as many."""
        drawn = super().step(number, batch, data)
        self.progress.add(len(batch.index) * rank_and_world()[1])
        return drawn

    def start(self, models: Models, data: DataInterface, device: torch.device, *, training: bool) -> None:
        """As `GuidedEvaluations.start`; a failure of one rank fails on all.

        Raises:
            ValueError: in place of any error.
        """

        self.totals = {}

        def resolve() -> None:
            with as_value_error():
                super(BlockEvaluations, self).start(models, data, device, training=training)

        run_on_all_ranks(self.before)
        run_on_all_ranks(resolve)

    def missing(self, find: Callable[[GuidedEvaluations], Iterator[str]]) -> Iterator[str]:
        """Yield nothing: a point that cannot be drawn fails by itself."""
        yield from ()

    def _reduce(self, loop: SamplingLoop, device: torch.device) -> None:
        """Fill `totals`: evaluation -> `METRIC.STATE` -> sum or rows; results stay empty."""
        # waits at the end of a block: it is kept in a file
        found = {f"{COST_KEY}.total": loop.cost(device).cpu()}
        for name, metric in loop.metrics.items():
            found |= {f"{name}.{state}": value.cpu() for state, value in metric.totals().items()}
        self.totals[loop.name] = found

    def report(self, parts: Sequence[Totals], data: DataInterface, device: torch.device) -> dict[str, float]:
        """All metrics over the union of `parts`, on this rank alone, with `nfe`, `samples` and `seconds`.

        Raises:
            ValueError: if a metric cannot be computed from them.
        """
        calls, samples, seconds = torch.stack([part[f"{COST_KEY}.total"] for part in parts]).sum(0).tolist()
        report = {"nfe": calls / max(samples, 1), "samples": samples, "seconds": seconds}
        for name, metric in self.metrics.items():
            prefix = f"{name}."
            of_metric = [{k.removeprefix(prefix): v for k, v in part.items() if k.startswith(prefix)} for part in parts]
            add_results(report, name, self._prepare(metric, data, device).compute_over(of_metric))
        return report


class SampledBlocks(Scorer):
    """Scorer of a run: draws by `trainer.test` over all ranks and keeps the blocks in a folder.

    Every rank must make the same calls. Scores are computed on rank 0 and broadcast.

    Attributes:
        runs: other runs that points and metrics refer to, with their identity (`run_identity`).
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        module: DiffusionModule,
        data: pl.LightningDataModule,
        space: Space,
        *,
        folder: str | Path,
        size: int,
        build: Callable[[Point], Evaluation],
        metrics: Mapping[str, SampleMetric],
        rebuilt: RebuiltGuiders,
        about: Mapping[str, Any],
    ) -> None:
        """Blocks of `size` samples, written to `folder`; `build` makes the evaluation at a point.

        `about` holds everything a block depends on besides its evaluation; other blocks in the folder are not touched.
        """
        self.trainer, self.module, self.data, self.space = trainer, module, data, space
        self.folder, self.size, self.build = Path(folder), size, build
        self.about, self.rebuilt = dict(about), cast(RebuiltGuiders | None, rebuilt)
        self.evaluations = module.evaluations = BlockEvaluations(metrics, before=self._rebuild)
        self.runs = named_runs([self.about, *map(space.evaluation, [(), *space.points])])
        self._keys = {self._key(point): point for point in [(), *space.points]}
        self._on_disk: dict[Point, set[ScoreBlock]] = {}
        self._shown: dict[Point, set[ScoreBlock]] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            key, *numbers = path.stem.split("-")
            if key in self._keys:
                seed, number = numbers
                self._on_disk.setdefault(self._keys[key], set()).add(ScoreBlock(int(seed), int(number)))

    def drawn(self, point: Point) -> set[ScoreBlock]:
        """Blocks that are there."""
        return self._on_disk.get(point, set())

    def draw(self, point: Point, blocks: Sequence[ScoreBlock]) -> None:
        """Draw those of `blocks` that are missing, all in one test of the trainer.

        Raises:
            ValueError: if the point cannot be drawn from.
        """
        missing = [block for block in blocks if block not in self.drawn(point)]
        known = self._shown.setdefault(point, set())
        self.evaluations.progress.skip(self.size * len(set(blocks) - known - set(missing)))
        known.update(blocks)
        if not missing:
            return
        with as_value_error():
            evaluation = replace(self.build(point), metrics=None, num_samples=self.size, repetitions=1)
        names = {f"block {block.number} of seed {block.seed}": block for block in missing}
        self.evaluations.evaluations = {
            name: replace(evaluation, seed=block.seed, first_index=block.number * self.size)
            for name, block in names.items()
        }
        self.evaluations.totals = {}
        # with several ranks a failure ends the search: the others may be waiting for this one
        try:
            with as_value_error() if self.trainer.world_size == 1 else nullcontext():
                self.trainer.test(self.module, datamodule=self.data, verbose=False)
        except ValueError as error:  # without the name that the search gave the block
            raise ValueError(str(error).removeprefix(f"evaluation {next(iter(names))!r}: ")) from error
        if self.evaluations.totals.keys() != names.keys():
            raise RuntimeError("the test loop ended before all samples were drawn")
        for name, block in names.items():
            if self.trainer.is_global_zero:
                self._write(point, block, self.evaluations.totals[name])
        self._on_disk.setdefault(point, set()).update(missing)

    def scores(self, point: Point, blocks: Sequence[ScoreBlock], *, interval: bool = True) -> Scores:
        """Metrics over the union of `blocks`, all drawn; without `interval` over all of them alone.

        Raises:
            ValueError: if a metric cannot be computed from them.
        """
        found: Scores | str | None = None
        if rank_and_world()[0] == 0:  # before the process group exists, each rank for itself
            parts = [self._read(point, block) for block in blocks]
            try:
                with as_value_error():
                    found = self._scores(parts, interval)
            except ValueError as error:
                found = str(error)
        found = self.trainer.strategy.broadcast(found)
        if isinstance(found, str):
            raise ValueError(found)
        assert found is not None
        return found

    def show_best(self, best: Mapping[str, tuple[Point, str]]) -> None:
        """Show the best points beside the progress."""
        note = "; ".join(f"{metric} {score} at {self.space.name(point)}" for metric, (point, score) in best.items())
        if note:
            self.evaluations.progress.add(0, note=f"best: {note}")

    def discard(self, point: Point) -> None:
        """Remove the blocks of a point from the folder."""
        for block in self._on_disk.pop(point, set()):
            if self.trainer.is_global_zero:
                self._path(point, block).unlink(missing_ok=True)

    def _rebuild(self) -> None:
        """Rebuild averages once, on rank 0.

        Raises:
            ValueError: if it fails; another point tries again.
        """
        with as_value_error():
            if self.rebuilt is not None and self.trainer.is_global_zero:
                remove_temporary(self.folder)
                self.rebuilt.write()
        self.rebuilt = None

    def _scores(self, parts: Sequence[Totals], interval: bool) -> Scores:
        unions = [parts, *(leave_one_out(parts) if interval else ())]
        device = self.trainer.strategy.root_device
        values, *without = (self.evaluations.report(union, cast(DataInterface, self.data), device) for union in unions)
        return Scores(values, without)

    def _key(self, point: Point) -> str:
        """A name for the evaluation at a point: depends on its own settings and runs alone, so that axes may grow."""
        evaluation = self.space.evaluation(point)
        written = json.dumps(with_identities([self.about, evaluation], self.runs), sort_keys=True, default=str)
        return hashlib.sha256(written.encode()).hexdigest()[:16]

    def _path(self, point: Point, block: ScoreBlock) -> Path:
        return self.folder / f"{self._key(point)}-{block.seed}-{block.number:06d}.safetensors"

    def _write(self, point: Point, block: ScoreBlock, totals: Totals) -> None:
        with atomic(self._path(point, block), durable=False) as temporary:
            save_file({name: value.contiguous() for name, value in totals.items()}, temporary)

    def _read(self, point: Point, block: ScoreBlock) -> Totals:
        path = self._path(point, block)
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise OSError(f"{path} is damaged ({error}); remove it and the search redraws it") from None
