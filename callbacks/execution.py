"""Execution of the network in training: `torch.compile` and activation recomputation. Results stay the same."""

from __future__ import annotations

from typing import Literal

import lightning.pytorch as pl

from lightning_guide.guidance.perturbation import network_of
from lightning_guide.modules.diffusion import DiffusionModule

__all__ = ["TrainingOptimizations"]


class TrainingOptimizations(pl.Callback):
    """Compilation and activation recomputation of the network in training; not stored in snapshots or checkpoints."""

    def __init__(
        self,
        *,
        compile: bool = False,
        mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = "default",
        recompute: bool = False,
    ) -> None:
        """Configure the execution.

        Args:
            compile: compile the network with `torch.compile`, which takes minutes at the start and needs a C++ or GPU
                compiler. Dropout then draws other masks.
            mode: mode of `torch.compile`.
            recompute: keep only the outputs of blocks and recompute their activations in the backward pass
                (Chen et al. 2016, https://arxiv.org/abs/1604.06174): less memory for a third more time.
        """
        self.compile, self.mode, self.recompute = compile, mode, recompute

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Apply the settings to the network.

        Raises:
            ValueError: if nothing with a network is trained, or its network cannot recompute its blocks.
        """
        if not isinstance(pl_module, DiffusionModule):
            raise ValueError(f"TrainingOptimizations is for diffusion models, got a {type(pl_module).__name__}")
        _, network = network_of(pl_module.denoiser, "TrainingOptimizations")
        if self.recompute:
            if network.recompute is None:
                raise ValueError(f"a {type(network).__name__} cannot recompute its blocks; set recompute to false")
            network.recompute = True
        if self.compile:
            network.compile(mode=self.mode)  # in place: the module and its parameter names stay the same
