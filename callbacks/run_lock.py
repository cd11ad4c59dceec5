"""One process at a time that trains in a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from lightning_guide.modules.gradient_optimization import GradientOptimization
from lightning_guide.utils.files import STALE, remove_temporary
from lightning_guide.utils.locks import FolderLock
from lightning_guide.utils.run_places import LOCK

__all__ = ["RunLock"]


class RunLock(Checkpoint):
    """Lock of the run folder during `fit`: a second one is refused, naming host, process and command of the first.

    The owner removes the temporary files that killed processes left.

    The processes of one run hold one lock, in `RUN/.lock`. That of a process that has ended is taken over
    (`lightning_guide.utils.locks`). Validation, test and prediction beside a fit need no lock. A `Checkpoint`, so that
    it ends after those that write checkpoints; list it after them.
    """

    def __init__(self) -> None:
        """Nothing to configure."""
        super().__init__()
        self._lock: FolderLock | None = None

    def acquire(self, trainer: pl.Trainer) -> None:
        """Become the owner, on process 0; nothing in a trial (`fast_dev_run`), which writes no run.

        Raises:
            ValueError: naming the present owner.
        """
        if self._lock is None and trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            run = trainer.default_root_dir
            self._lock = FolderLock(Path(run) / LOCK, what=f"the run {run}").acquire()
            for folder in ("", "report", "grids"):  # to which a validation beside the fit may write
                remove_temporary(Path(run) / folder, seconds=STALE)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Become the owner, unless it is; the test loop of `GradientOptimization` writes a run, too."""
        if stage == "fit" or isinstance(pl_module, GradientOptimization):
            self.acquire(trainer)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Stop if another process took the lock over."""
        if self._lock is not None:
            self._lock.check()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Release the lock."""
        self._release()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Release the lock."""
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None
