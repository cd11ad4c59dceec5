"""Optimization with a frozen model by rounds of gradient-guided samples.

Guo et al. 2024, "Gradient Guidance for Diffusion Models: An Optimization Perspective",
https://arxiv.org/abs/2404.14743, algorithm 1. `Trainer.test` runs it, since nothing is trained: round k is data loader
k, with its samples split exactly over all processes.
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

from lightning_guide.data import DataInterface, SampleBatch, data_of
from lightning_guide.denoiser import Denoiser
from lightning_guide.evaluation.evaluation import Evaluation
from lightning_guide.evaluation.sampling_loop import DrawnSamples, prompts_of
from lightning_guide.modules.needs import check_fits_data, count_labels, require_needs
from lightning_guide.objectives.energy import Energy
from lightning_guide.optimization.round_buffers import write_records
from lightning_guide.optimization.rounds import Rounds
from lightning_guide.optimization.targets import Target
from lightning_guide.runs.checkpoints import read_whole
from lightning_guide.runs.models import RunModels
from lightning_guide.utils.files import atomic
from lightning_guide.utils.terminal import counted

__all__ = ["GradientOptimization"]


_SAVE_SECONDS = 1.0  # least time between two saved states


class GradientOptimization(pl.LightningModule):
    """Optimization by gradient guidance (algorithm 1): `num_rounds` rounds with frozen weights of `denoiser`.

    After each round its numbers are written to the loggers (`rounds/...`, at the step of the round) and to
    `rounds/history.jsonl`, the state for the next round to `rounds/state.ckpt` in the run folder. Rerun the same
    command to resume after any interruption, with the same samples. `rounds.feedback` holds the G_K of the paper.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        objective: Energy,
        sampling: Evaluation,
        *,
        target: Target | None = None,
        num_rounds: int = 100,
        at: Literal["mean", "sample"] = "mean",
        floor: float = 0.0,
        redraw: bool = True,
    ) -> None:
        """Configure the rounds.

        Args:
            denoiser: the model: an exact one, or a `Snapshot` of a run.
            objective: to be maximized.
            sampling: samples, sampler, metrics and the `GradientGuidance` of each round.
            target: rule for the label of the next round; default `GainTarget(0.2)`.
            num_rounds: K, including the unguided first round.
            at: gradients at the "mean" of a round (paper) or at each "sample" (published code, images).
            floor: gradients of at most this norm are ignored, see `Rounds`.
            redraw: fresh noise in each round; with the same noise, images of different rounds are comparable.

        Raises:
            ValueError: if `num_rounds` is below 1, or as `Rounds`.
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
        """Resume from the rounds in the run folder, if any.

        Raises:
            ValueError: if the data do not fit the model, or the rounds have other settings.
        """
        if self._state.exists():
            self.rounds.load_state_dict(self._read_state())
            self.rounds.read_history(self.trainer.default_root_dir)
            rank_zero_info(f"continuing after {counted(self.rounds.round, 'round')} from {self._state}")
            if self.rounds.round > self.num_rounds:
                rank_zero_warn(
                    f"{counted(self.rounds.round, 'round')} exist already, more than num_rounds = {self.num_rounds}: "
                    "none is drawn, and the numbers shown are those of the last"
                )
            self.trainer.strategy.barrier()  # all processes have read before process 0 writes
            if self.trainer.is_global_zero:
                write_records(self.trainer.default_root_dir, self.rounds.history)
        self._first = self.rounds.round
        run, device, data = self.trainer.default_root_dir, self.device, self._data
        model = self.denoiser.resolve(RunModels(self.denoiser, run=run, device=device)).requires_grad_(False).eval()
        check_fits_data(data, model)
        prompts = prompts_of(data, model)
        self._models = RunModels(model, run=run, device=device, prompts=prompts)

    def on_test_start(self) -> None:
        """Check what the rounds need.

        Raises:
            MissingNeedsError: listing everything that is missing.
        """
        require_needs(self, lambda: self.rounds.missing(self._data.reference(self.device)))

    def sample_sets(self, stage: str) -> list[tuple[Dataset[SampleBatch], int]]:
        """Return the sample indices of each remaining round, the same in all rounds; the noise differs.

        Raises:
            ValueError: if a process has no samples to draw.
        """
        sampling, world = self.rounds.sampling, self.trainer.world_size
        if sampling.num_samples < world:
            raise ValueError(f"num_samples is {sampling.num_samples}; {world} processes need at least one sample each")
        assert self._models is not None
        samples = self.rounds.indices(count_labels(lambda: self._data, self._models.main))
        return [(samples, sampling.batch_size)] * max(self.num_rounds - self._first, 0)

    def on_test_epoch_start(self) -> None:
        """Resolve the guidance."""
        assert self._models is not None
        self._models.main.to(self.device)
        self.rounds.start(self._models, self._data, self.device)

    def test_step(  # type: ignore[override]
        self, batch: SampleBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> DrawnSamples:
        """Draw one batch of the round; the last one of this process ends the round on all processes.

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
        """Set the next guidance and write records and state from process 0."""
        record = self.rounds.finish()
        for logger in self.loggers:
            values = {f"rounds/{name}": value for name, value in record.items() if name != "round"}
            logger.log_metrics(values, step=int(record["round"]))
        if self.trainer.is_global_zero:
            self.rounds.append_history(self.trainer.default_root_dir)
            # an older state is enough: the rounds after it are drawn again with the same result
            if time.monotonic() > self._saved + _SAVE_SECONDS or self.rounds.round == self.num_rounds:
                with atomic(self._state) as temporary:
                    torch.save(self.rounds.state_dict(), temporary)
                self._saved = time.monotonic()

    def on_test_epoch_end(self) -> None:
        """Log the numbers of the last round."""
        if self.rounds.history:
            values = {name: value for name, value in self.rounds.history[-1].items() if name != "seconds"}
            # Lightning waits once for each value, after a round
            self.log_dict(values, sync_dist=True, batch_size=1)

    @property
    def evaluated_step(self) -> int:
        """Rounds so far, x of images in loggers."""
        return self.rounds.round

    def _read_state(self) -> dict[str, Any]:
        """Return the state of the rounds so far.

        Raises:
            ValueError: if the file is damaged.
        """
        try:
            return read_whole(self._state, keys=("round", "settings", "samples"))
        except ValueError as error:
            raise ValueError(
                f"the state of the rounds {self._state} is damaged ({error}); put back the whole file, or move the "
                f"folder {self._state.parent} away to draw all rounds again"
            ) from None

    @property
    def _state(self) -> Path:
        return Path(self.trainer.default_root_dir) / "rounds" / "state.ckpt"

    @property
    def _data(self) -> DataInterface:
        return data_of(self.trainer)
