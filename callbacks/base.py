"""The first samples of every evaluation, gathered from all processes: the base of callbacks that draw pictures.

Which process drew a sample does not matter: kept are those with the smallest indices, and sample i is always the same.

Guidances that outlive their evaluation: the base of callbacks that ask them once more.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_guide.denoiser import Denoiser
from lightning_guide.evaluation.sampling_loop import DrawnSamples
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.utils.distributed import all_gather_objects

__all__ = ["EvaluationSamples", "ResolvedGuidances"]


class EvaluationSamples(pl.Callback, ABC):
    """Keeps the `count` samples of smallest index of each evaluation and hands them to `draw` on process 0.

    Works at the end of every validation and test; each process holds at most `count` samples of an evaluation.
    """

    def __init__(self, count: int) -> None:
        """`count` samples of each evaluation, over all processes.

        Raises:
            ValueError: if that is none.
        """
        super().__init__()
        if count < 1:
            raise ValueError(f"{type(self).__name__} needs count >= 1 samples, got {count}")
        self.count = count
        self._kept: dict[str, DrawnSamples] = {}

    @abstractmethod
    def draw(self, trainer: pl.Trainer, module: DiffusionModule, samples: dict[str, DrawnSamples]) -> None:
        """Called on process 0 with evaluation -> samples in order of their index, on the CPU.

        Evaluations that were skipped, or drew nothing, are not among them.
        """

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Forgets the samples of the last time."""
        self._kept = {}

    def on_test_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Forgets the samples of the last time."""
        self._kept = {}

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keeps what evaluation `dataloader_idx` - 1 drew; loop 0 is the held-out data."""
        self._keep(pl_module, dataloader_idx - 1, outputs)

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keeps what evaluation `dataloader_idx` drew."""
        self._keep(pl_module, dataloader_idx, outputs)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Gathers and draws."""
        self._finish(trainer, pl_module)

    def on_test_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Gathers and draws."""
        self._finish(trainer, pl_module)

    def _keep(self, module: DiffusionModule, number: int, drawn: Any) -> None:
        """Adds one batch, unless all of it comes after what is kept already."""
        if not isinstance(drawn, DrawnSamples):
            return
        name = module.evaluations.names[number]
        kept = self._kept.get(name)
        if kept is not None and len(kept.index) == self.count and int(drawn.index.min()) > int(kept.index[-1]):
            return
        new = DrawnSamples(*(column.detach().cpu() for column in drawn))
        self._kept[name] = _first([new] if kept is None else [kept, new], self.count)

    def _finish(self, trainer: pl.Trainer, module: DiffusionModule) -> None:
        """One collective for all evaluations, also on processes that drew nothing; then process 0 draws."""
        kept, self._kept = self._kept, {}
        if trainer.sanity_checking:
            return
        parts = all_gather_objects(kept)
        if trainer.is_global_zero:
            by_name = {name: [part[name] for part in parts if name in part] for name in module.evaluations.names}
            samples = {name: _first(drawn, self.count) for name, drawn in by_name.items() if drawn}
            self.draw(trainer, module, samples)


def _first(parts: Sequence[DrawnSamples], count: int) -> DrawnSamples:
    """The `count` samples of smallest index, in its order."""
    order = torch.cat([part.index for part in parts]).argsort()[:count]
    return DrawnSamples(*(torch.cat(column)[order] for column in zip(*parts, strict=True)))


class ResolvedGuidances(pl.Callback):
    """Takes hold of the guidances at the end of a validation or test; the module lets go of their models right after.

    Attributes:
        resolved: evaluation -> guidance, with models for references; on process 0, until the callback lets go of them.
    """

    resolved: Mapping[str, Denoiser] = MappingProxyType({})

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Takes hold of them."""
        self._take(trainer, pl_module)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Takes hold of them."""
        self._take(trainer, pl_module)

    def _take(self, trainer: pl.Trainer, module: Any) -> None:
        if trainer.is_global_zero and not trainer.sanity_checking:
            self.resolved = module.evaluations.resolved
