"""Guidances that outlive their evaluation: the base of callbacks that ask them once more."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import lightning.pytorch as pl

from lightning_guide.denoiser import Denoiser

__all__ = ["ResolvedGuidances"]


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
