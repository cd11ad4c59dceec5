"""Optimization with a frozen model: rounds of guided samples, each of which tells the guidance of the next one.

Guo et al. 2024, "Gradient Guidance for Diffusion Models: An Optimization Perspective",
https://arxiv.org/abs/2404.14743, algorithm 1. `Trainer.test` runs it, since nothing is trained: round k is the loader
number k, its samples split exactly over all processes.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils.data import Dataset

from lightning_guide.data import SampleBatch
from lightning_guide.denoiser import Denoiser
from lightning_guide.evaluation.evaluation import Evaluation
from lightning_guide.evaluation.sampling_loop import DrawnSamples
from lightning_guide.objectives.objective import Objective
from lightning_guide.optimization.round_buffers import write_records
from lightning_guide.optimization.rounds import Rounds
from lightning_guide.optimization.targets import Target
from lightning_guide.runs.models import RunModels
from lightning_guide.utils.files import atomic

__all__ = ["GradientOptimization"]


_SAVE_SECONDS = 1.0


class GradientOptimization(pl.LightningModule):
    """Algorithm 1: `num_rounds` rounds with the weights of `denoiser` as they are.

    After each round its numbers go to the loggers (`rounds/...`, at the step of the round), to `rounds/history.jsonl`
    and all that the next round needs to `rounds/state.ckpt` in the folder of the run. The same command goes on
    from there, whatever killed it, with the same samples. `rounds.feedback` holds the G_K of the paper.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        objective: Objective,
        sampling: Evaluation,
        *,
        target: Target | None = None,
        num_rounds: int = 100,
        at: Literal["mean", "sample"] = "mean",
        floor: float = 0.0,
        redraw: bool = True,
    ) -> None:
        """Configures the rounds.

        Args:
            denoiser: the model: an exact one, or a `Snapshot` of a run.
            objective: to be maximized.
            sampling: samples, sampler, metrics and the `GradientGuidance` of each round.
            target: rule for the label of the next round; default `Gain(0.2)`.
            num_rounds: K, the unguided first round among them.
            at: gradients at the "mean" of a round (paper) or at each "sample" (published code, pictures).
            floor: gradients of at most this norm are passed over, see `Rounds`.
            redraw: fresh noise in each round; without, pictures of different rounds compare.

        Raises:
            ValueError: if there is no round, or as `Rounds`.
        """
        super().__init__()
        if num_rounds < 1:
            raise ValueError(f"GradientOptimization needs num_rounds >= 1, got {num_rounds}")
        self.denoiser, self.objective, self.num_rounds = denoiser, objective.requires_grad_(False), num_rounds
        self.rounds = Rounds(objective, sampling, target, at=at, floor=floor, redraw=redraw, model=denoiser)
        self.images_seen = 0
        self._first = 0
        self._saved = -math.inf
        self._models: RunModels | None = None

    def setup(self, stage: str) -> None:
        """Takes up the rounds that the run's folder holds already.

        Raises:
            ValueError: if the data do not fit the model, or the rounds are those of another config.
        """
        if self._state.exists():
            self.rounds.load_state_dict(torch.load(self._state, map_location="cpu", weights_only=True))
            self.rounds.read_history(self.trainer.default_root_dir)
            rank_zero_info(f"continuing after {self.rounds.round} rounds from {self._state}")
            if self.rounds.round > self.num_rounds:
                rank_zero_warn(
                    f"{self.rounds.round} rounds are drawn already, more than num_rounds = {self.num_rounds}; nothing "
                    "is drawn, and the numbers shown are those of the last"
                )
            self.trainer.strategy.barrier()  # all have read before one writes
            if self.trainer.is_global_zero:
                write_records(self.trainer.default_root_dir, self.rounds.history)
        self._first = self.rounds.round
        here = RunModels(self.denoiser, run=self.trainer.default_root_dir, device=self.device)
        model = self.denoiser.resolve(here).requires_grad_(False).eval()
        shape = tuple(self._data.data_shape)
        if shape != tuple(model.data_shape):
            raise ValueError(f"the data has shape {shape}, the model is one of {tuple(model.data_shape)}")
        self._models = RunModels(model, run=self.trainer.default_root_dir, device=self.device)

    def sample_sets(self, stage: str) -> list[tuple[Dataset[SampleBatch], int]]:
        """The samples of each round that is still to come, the same ones under other noise.

        Raises:
            ValueError: if a process would have nothing to draw.
        """
        sampling, world = self.rounds.sampling, self.trainer.world_size
        if sampling.num_samples < world:
            raise ValueError(f"num_samples is {sampling.num_samples}; {world} processes need at least one sample each")
        assert self._models is not None
        samples = self.rounds.indices(self._models.main.num_classes)
        return [(samples, sampling.batch_size)] * max(self.num_rounds - self._first, 0)

    def on_test_epoch_start(self) -> None:
        """Resolves the guidance."""
        assert self._models is not None
        self._models.main.to(self.device)
        self.rounds.begin(self._models, self._data, self.device)

    def test_step(self, batch: SampleBatch, batch_idx: int, dataloader_idx: int = 0) -> DrawnSamples:  # type: ignore[override]
        """One batch of the round; the last of this process ends the round on all of them.

        Raises:
            ValueError: if `limit_test_batches` cuts rounds short.
        """
        if self._first + dataloader_idx != self.rounds.round:
            raise ValueError("rounds have to be drawn whole: set trainer.limit_test_batches to 1.0")
        drawn = self.rounds.draw(batch, self._data)
        share = range(self.global_rank, self.rounds.sampling.num_samples, self.trainer.world_size)
        if self.rounds.drawn == len(share):
            self._end_round()
        return drawn

    def _end_round(self) -> None:
        """Sets the next guidance; process 0 writes what there is to know."""
        record = self.rounds.finish()
        for logger in self.loggers:
            numbers = {f"rounds/{name}": value for name, value in record.items() if name != "round"}
            logger.log_metrics(numbers, step=int(record["round"]))
        if self.trainer.is_global_zero:
            self.rounds.append_history(self.trainer.default_root_dir)
            # an older state is as good: the rounds after it are drawn again, the same
            if time.monotonic() > self._saved + _SAVE_SECONDS or self.rounds.round == self.num_rounds:
                with atomic(self._state) as temporary:
                    torch.save(self.rounds.state_dict(), temporary)
                self._saved = time.monotonic()

    def on_test_epoch_end(self) -> None:
        """Logs the numbers of the last round."""
        if self.rounds.history:
            values = {name: value for name, value in self.rounds.history[-1].items() if name != "seconds"}
            self.log_dict(values, sync_dist=True, batch_size=1)

    @property
    def _state(self) -> Path:
        return Path(self.trainer.default_root_dir) / "rounds" / "state.ckpt"

    @property
    def _data(self) -> Any:
        return self.trainer.datamodule  # type: ignore[attr-defined]
