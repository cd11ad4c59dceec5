"""Checkpoints for resuming a run (`every_steps`, `keep`), written atomically: a kill never loses the previous one."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint

from lightning_guide.runs.models import checkpoint_folder, newest_checkpoint
from lightning_guide.utils.files import atomic

__all__ = ["RunCheckpoint", "check_checkpoint", "checkpoint_step", "newest_checkpoint"]


class RunCheckpoint(Checkpoint):
    """Checkpoints every `every_steps` optimizer steps and at the end, of which the newest `keep` stay.

    Files are `checkpoints/step-N.ckpt` in the run folder. A file gets its name once it is complete (write, fsync,
    rename); older ones are deleted only after that.
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
        self._saved = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Skip saving right after loading."""
        self._saved = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save after an optimizer step that is due, or at once if a stop was requested."""
        due = trainer.global_step % self.every_steps == 0 or trainer.should_stop
        if trainer.global_step > self._saved and due:
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the final state."""
        if trainer.global_step > self._saved:
            self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        """Save on rank 0, with all ranks taking part; nothing in a trial (`fast_dev_run`), which is never resumed."""
        self._saved = trainer.global_step
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        folder = checkpoint_folder(trainer.default_root_dir)
        path = folder / f"step-{self._saved:09d}.ckpt"
        with atomic(path) if trainer.is_global_zero else nullcontext(path) as temporary:
            trainer.save_checkpoint(temporary, weights_only=False)
        if trainer.is_global_zero:
            for old in sorted(folder.glob("step-*.ckpt"))[: -self.keep]:
                old.unlink()
            for stray in folder.glob(".step-*.tmp"):
                stray.unlink()
        trainer.strategy.barrier()


def checkpoint_step(checkpoint: Path) -> int:
    """Return the optimizer step after which a checkpoint was written, from its name."""
    return int(checkpoint.stem.removeprefix("step-"))


def check_checkpoint(checkpoint: str | Path, module: pl.LightningModule) -> None:
    """Check that a checkpoint is readable and holds weights of the same shapes as `module`.

    Raises:
        ValueError: if the file is missing or damaged, or a weight differs (the first one is named).
    """
    path = Path(checkpoint)
    others = ", ".join(sorted(other.name for other in path.parent.glob("*.ckpt") if other != path)) or "none"
    if not path.is_file():
        raise ValueError(f"the checkpoint {path} does not exist; others beside it: {others}")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"the checkpoint {path} is damaged ({reason}); delete it to continue from the one before it (others beside "
            f"it: {others})"
        ) from None
    stored = {name: tuple(weight.shape) for name, weight in weights.items()}
    needed = {name: tuple(weight.shape) for name, weight in module.state_dict().items()}
    wrong = sorted(name for name in stored.keys() | needed.keys() if stored.get(name) != needed.get(name))
    if wrong:
        raise ValueError(
            f"the checkpoint {path} holds another model than the config describes: {len(wrong)} weights differ, first "
            f"{wrong[0]!r}, stored {stored.get(wrong[0], 'nothing')}, expected {needed.get(wrong[0], 'nothing')}; use "
            "the config the run began with, or another trainer.default_root_dir"
        )
