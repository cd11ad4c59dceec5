"""Checkpoints for resuming a run (`every_steps`, `keep`), written atomically: a kill never loses the previous one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info

from callbacks.repeated_validation import (
    count_from_the_start,
    progress_before_validation,
    repeat_last_validation,
    skip_validation,
    validates_after_batch,
    validation_was_left,
)
from lightning_guide.runs.branches import STORES, check_branch, finish_branch, later_files, set_aside
from lightning_guide.runs.checkpoints import (
    checkpoint_folder,
    newest_checkpoint,
    record_checkpoints,
    recorded_branch,
    recorded_checkpoints,
    recorded_validated,
    remove_temporary_files,
)
from lightning_guide.snapshots import SnapshotStore
from lightning_guide.utils.distributed import all_gather_objects
from lightning_guide.utils.files import atomic
from lightning_guide.utils.needs import unwritable
from lightning_guide.utils.terminal import counted

__all__ = ["RunCheckpoint"]


class _InPlace(TorchCheckpointIO):
    """Writer of checkpoints in their place; Lightning's goes through the temporary folder of the system."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`."""
        with Path(path).open("wb") as file:
            torch.save(checkpoint, file)  # a wait for each tensor: the file is written by the host


def _newest_without_checkpoint(trainer: pl.Trainer) -> int:
    """Return the images of the newest snapshot in the run folder if the fit starts without a checkpoint, else 0."""
    run = Path(trainer.default_root_dir)
    if trainer.ckpt_path is not None or newest_checkpoint(run) is not None:
        return 0
    return max((entry.images for part in STORES for entry in SnapshotStore(run / part).entries()), default=0)


class RunCheckpoint(Checkpoint):
    """Checkpoints every `every_steps` optimizer steps and at the end, of which the newest `keep` stay.

    Files are `checkpoints/step-N.ckpt` in the run folder. A file gets its name once it is complete (write, fsync,
    rename); older ones are deleted only after that, and only those that the run wrote and recorded itself. If an error
    or a signal ends training between two optimizer steps, as in a validation, the newest step is saved first. An
    evaluation that fails during the fit has a checkpoint, too.

    A fit that starts from an earlier checkpoint than the newest goes back: the run as it was is kept in
    `branches/N`, a run folder of its own (`lightning_guide.runs.branches`). One whose folder holds snapshots but no
    checkpoint is refused, unless the run may have ended before its first checkpoint was due.
    """

    def __init__(self, every_steps: int = 1000, *, keep: int = 2) -> None:
        """Configure the interval `every_steps` in optimizer steps and the number `keep` of checkpoints that stay.

        Raises:
            ValueError: if either is below 1.
        """
        super().__init__()
        if every_steps < 1 or keep < 1:
            raise ValueError(f"RunCheckpoint needs every_steps >= 1 and keep >= 1, got {every_steps} and {keep}")
        self.every_steps, self.keep = every_steps, keep
        self._saved = self._step = 0
        self._between_steps = False
        self._validates = False  # after the present batch
        self._repeats = False  # the newest checkpoint a validation
        self._validation: dict[str, Any] | None = None  # progress of the loops before a validation; {} after it

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write checkpoints in place, unless the trainer has another writer; repeat a last validation that was left."""
        if stage == "fit":
            repeat_last_validation(trainer)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = _InPlace()

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to continue a branch in the folder of another; repeat no validation that has ended.

        Raises:
            ValueError: naming the folder in which it is continued.
        """
        if trainer.state.fn == "fit":
            number, step = checkpoint.get("branch", 0), checkpoint["global_step"]
            check_branch(trainer.default_root_dir, checkpoint=trainer.ckpt_path, number=number, step=step)
            if Path(str(trainer.ckpt_path)).name in recorded_validated(trainer.default_root_dir):
                skip_validation(checkpoint["loops"])

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the branch; of a validation that is left, the progress with which it is repeated."""
        if number := recorded_branch(trainer.default_root_dir).get("number"):
            checkpoint["branch"] = number
        if self._validation:
            checkpoint["loops"] = self._validation

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Skip saving right after loading; if the fit goes back in the run, set aside what is later."""
        self._saved = self._step = trainer.global_step
        self._between_steps, self._validation = False, None
        self._repeats = validation_was_left(trainer)
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            if images := _newest_without_checkpoint(trainer):
                rank_zero_info(
                    f"{trainer.default_root_dir} holds snapshots up to {counted(images, 'image')}, but no checkpoint: "
                    "training starts from the beginning and replaces them"
                )
            self._go_back(trainer, images=int(getattr(pl_module, "images_seen", 0)))
        trainer.strategy.barrier()

    @staticmethod
    def _go_back(trainer: pl.Trainer, *, images: int) -> None:
        """Set aside what is later than the checkpoint that was loaded, unless that is the newest."""
        run, step, loaded = Path(trainer.default_root_dir), trainer.global_step, trainer.ckpt_path
        finish_branch(run)
        newest = newest_checkpoint(run)
        if newest is None or (Path(loaded).resolve() == newest.resolve() if loaded else not recorded_checkpoints(run)):
            return
        if later_files(run, step=step, images=images):
            branch = set_aside(run, checkpoint=loaded, step=step, images=images)
            rank_zero_info(f"going back to step {step}: the run as it was, up to {newest.stem}, is kept in {branch}")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """From here on nothing can be saved until the optimizer step is complete."""
        self._between_steps = False
        self._validates = validates_after_batch(trainer)  # before a requested stop takes the validation away

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save after an optimizer step that is due, before the last validation, or at once if a stop was requested.

        A validation that follows is repeated when the run continues, unless a later checkpoint was written.
        """
        self._between_steps, self._validation = trainer.global_step > self._step, None
        self._step = trainer.global_step
        if self._validates and self._between_steps:
            self._validation = progress_before_validation(trainer)
        last = self._validates and trainer.global_step == trainer.max_steps
        due = trainer.global_step % self.every_steps == 0 or last or trainer.should_stop
        if trainer.global_step > self._saved and due:
            self._save(trainer)

    def missing(self, trainer: pl.Trainer, module: pl.LightningModule) -> Iterator[str]:
        """Yield a sentence if checkpoints cannot be written."""
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            folder = checkpoint_folder(trainer.default_root_dir)
            yield from unwritable(folder, type(self).__name__)
            due = self.every_steps * int(getattr(module, "images_per_step", 0))
            if (images := _newest_without_checkpoint(trainer)) > due > 0:
                yield (
                    f"{trainer.default_root_dir} holds snapshots up to {counted(images, 'image')}, but no checkpoint "
                    f"to continue from; expected those of the run in {folder}, or another folder for a new run, as "
                    "--trainer.default_root_dir FOLDER"
                )

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the progress with which this validation is repeated if it is left."""
        if trainer.state.fn == "fit":
            count_from_the_start(trainer)
            if self._between_steps:
                self._validation = progress_before_validation(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record that nothing is left to repeat; save if an evaluation failed on any process."""
        self._validation = {}
        failed = bool(getattr(getattr(pl_module, "failures", None), "failed", None))
        fitting = trainer.state.fn == "fit" and not trainer.sanity_checking
        if fitting and trainer.global_step > self._saved and any(all_gather_objects(failed)):
            self._save(trainer)
        elif fitting and self._repeats and trainer.global_step == self._saved and trainer.is_global_zero:
            run = Path(trainer.default_root_dir)
            for logger in trainer.loggers:
                logger.save()
            path = checkpoint_folder(run) / f"step-{self._saved:09d}.ckpt"
            record_checkpoints(run, recorded_checkpoints(run), validated={*recorded_validated(run), path.name})

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Save the newest step if training was left in a validation, after a signal."""
        if stage == "fit" and self._between_steps:
            if self._validation is None:  # left by a callback before this one
                self.on_validation_start(trainer, pl_module)
            self._save(trainer)
        self._between_steps, self._validation = False, None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Save the newest step if an error came after it was complete; not of one of several processes alone."""
        self._validation = None
        whole = self._between_steps and trainer.global_step > self._saved
        if whole and trainer.world_size == 1 and not isinstance(exception, KeyboardInterrupt):
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the final state."""
        self._between_steps = False
        if trainer.global_step > self._saved:
            self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        """Save on rank 0, with all ranks taking part; nothing in a trial (`fast_dev_run`), which is never resumed."""
        self._saved, self._repeats = trainer.global_step, bool(self._validation)
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        run = Path(trainer.default_root_dir)
        path = checkpoint_folder(run) / f"step-{self._saved:09d}.ckpt"
        written = [each for each in recorded_checkpoints(run) if each != path]
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.save()  # curves up to a checkpoint are not lost after it
            # first: what is not recorded is never deleted
            record_checkpoints(run, [*written, path], validated=recorded_validated(run) - {path.name})
        with atomic(path) if trainer.is_global_zero else nullcontext(path) as temporary:
            trainer.save_checkpoint(temporary, weights_only=False)
        if trainer.is_global_zero:
            kept = [*written, path][-self.keep :]
            for old in set(written) - set(kept):
                old.unlink(missing_ok=True)
            remove_temporary_files(run)
            record_checkpoints(run, kept)
        trainer.strategy.barrier()
