"""Base classes of callbacks that draw the samples of an evaluation, or call its guidances again.

Samples are gathered from all processes and kept by smallest index. Sample i is the same whichever process drew it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import lightning.pytorch as pl
import torch

from callbacks.output import unwritable_output
from lightning_guide.denoiser import Denoiser
from lightning_guide.evaluation.sampling_loop import DrawnSamples
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.utils.distributed import all_gather_objects
from lightning_guide.utils.needs import require

__all__ = ["EvaluationSamples", "ResolvedGuidances"]


class EvaluationSamples(pl.Callback, ABC):
    """Base of callbacks that draw the first `count` samples of each evaluation (abstract: subclasses define `draw`).

    Runs at the end of every validation and test, on process 0. Each process holds at most `count` samples of an
    evaluation.

    Attributes:
        folder: of the files; None is `default_folder` in the run folder.
    """

    default_folder = "report"
    folder: str | None = None

    def __init__(self, count: int) -> None:
        """Configure the callback; `count`: samples of each evaluation, over all processes.

        Raises:
            ValueError: if `count` is below 1.
        """
        super().__init__()
        if count < 1:
            raise ValueError(f"{type(self).__name__} needs count >= 1 samples, got {count}")
        self.count = count
        self._kept: dict[str, DrawnSamples] = {}

    def missing(self, trainer: pl.Trainer, module: Any) -> Iterator[str]:
        """Yield a sentence if the images cannot be written."""
        yield from unwritable_output(trainer, self, default=self.default_folder)

    @abstractmethod
    def draw(self, trainer: pl.Trainer, module: DiffusionModule, samples: dict[str, DrawnSamples]) -> None:
        """Draw the samples: evaluation -> samples in order of index, on the CPU. Called on process 0.

        Evaluations that were skipped, failed or drew no samples are left out.
        """

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Discard earlier samples."""
        self._kept = {}

    def on_test_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Discard earlier samples."""
        self._kept = {}

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the samples of evaluation `dataloader_idx` - 1; loop 0 is the held-out data."""
        self._keep(pl_module, dataloader_idx - 1, outputs)

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the samples of evaluation `dataloader_idx`."""
        self._keep(pl_module, dataloader_idx, outputs)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Gather and draw the samples."""
        self._finish(trainer, pl_module)

    def on_test_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Gather and draw the samples."""
        self._finish(trainer, pl_module)

    def _keep(self, module: DiffusionModule, number: int, drawn: Any) -> None:
        """Add one batch, unless `count` samples of smaller index are kept already."""
        if not isinstance(drawn, DrawnSamples):
            return
        name = module.evaluations.names[number]
        kept = self._kept.get(name)
        # waits in each batch, for the smallest index and for the columns: figures are drawn on the host
        if kept is not None and len(kept.index) == self.count and int(drawn.index.min()) > int(kept.index[-1]):
            return
        new = DrawnSamples(*(column.detach().cpu() for column in drawn))
        self._kept[name] = _first([new] if kept is None else [kept, new], self.count)

    def _finish(self, trainer: pl.Trainer, module: DiffusionModule) -> None:
        """Gather all evaluations in one collective (on every process), then draw on process 0."""
        kept, self._kept = self._kept, {}
        if trainer.sanity_checking:
            return
        parts = all_gather_objects(kept)
        if trainer.is_global_zero:
            by_name = {name: [part[name] for part in parts if name in part] for name in module.evaluations.names}
            results = module.evaluations.results
            samples = {n: _first(drawn, self.count) for n, drawn in by_name.items() if drawn and n in results}
            with module.evaluations.contain(type(self).__name__):
                self.draw(trainer, module, samples)


def _first(parts: Sequence[DrawnSamples], count: int) -> DrawnSamples:
    """Return the `count` samples of smallest index, sorted by it."""
    order = torch.cat([part.index for part in parts]).argsort()[:count]
    return DrawnSamples(*(torch.cat(column)[order] for column in zip(*parts, strict=True)))


class ResolvedGuidances(pl.Callback):
    """Base of callbacks that call the guidances of an evaluation again (nothing to configure).

    The guidances are kept at the end of each validation or test, right before the module releases their models.

    Attributes:
        resolved: evaluation -> guidance, with models in place of references; on process 0, until a subclass clears it.
    """

    resolved: Mapping[str, Denoiser] = MappingProxyType({})

    def absent(self, module: Any) -> Iterator[str]:
        """Yield a sentence for each thing to be drawn that `module` does not have; nothing by default."""
        yield from ()

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Check before validation and test that nothing is `absent`; `missing` does so before a fit.

        Raises:
            MissingNeedsError: if something is.
        """
        if stage in ("validate", "test"):
            require(lambda: self.absent(pl_module))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Keep the resolved guidances."""
        self._keep_guidances(trainer, pl_module)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Keep the resolved guidances."""
        self._keep_guidances(trainer, pl_module)

    def _keep_guidances(self, trainer: pl.Trainer, module: Any) -> None:
        if trainer.is_global_zero and not trainer.sanity_checking:
            self.resolved = module.evaluations.resolved
