"""Adaptive fine-tuning on samples of gradient guidance, beyond the pre-training data.

Guo et al. 2024, "Gradient Guidance for Diffusion Models: An Optimization Perspective",
https://arxiv.org/abs/2404.14743, algorithm 2. Round k draws samples with the current model under the current guidance
and takes the gradient of the objective there. The model is trained on pre-training data and on the samples of all
rounds so far, with weights w_{k,i}. The denoiser determines the trained parameters: all weights, the factors of
`LowRank`, or the mean of `Shifted` with the loss `MeanRefit`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_guide.data import Batch, SampleBatch
from lightning_guide.denoiser import Denoiser, Models
from lightning_guide.evaluation.evaluation import Evaluation
from lightning_guide.evaluation.sampling_loop import prompts_of
from lightning_guide.guidance.base import Reference
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.objectives.energy import Energy
from lightning_guide.optimization.replay import GeometricReplay, Replay, mixture
from lightning_guide.optimization.round_buffers import write_records
from lightning_guide.optimization.rounds import Rounds
from lightning_guide.optimization.targets import Target
from lightning_guide.runs.models import RunModels
from lightning_guide.seeds import mix
from lightning_guide.training.losses import TrainingLoss
from lightning_guide.utils.devices import to_device

__all__ = ["GradientFineTuning"]


_NEGLIGIBLE = 1e-9  # a weight too small to give a row of any batch


class GradientFineTuning(DiffusionModule):
    """Adaptive fine-tuning (algorithm 2): one round of guided samples before every `steps_per_round` optimizer steps.

    `Trainer(max_steps=...)` is the budget in steps, `max_evaluations` that in network calls. Everything else is as in
    `DiffusionModule`: clock, learning rate, averages by `callbacks.PostHocEMA`, checkpoints, bitwise resuming at any
    step. Rounds draw from the trained weights, or from their average if `average` is set. Their numbers go to the
    loggers (`rounds/...`) and to `rounds/history.jsonl` in the run folder.
    """

    unsaved = "objective."  # beginning of names of weights that a checkpoint need not hold

    def __init__(
        self,
        denoiser: Denoiser,
        loss: TrainingLoss,
        *,
        objective: Energy,
        sampling: Evaluation,
        target: Target | None = None,
        replay: Replay | None = None,
        at: Literal["mean", "sample"] = "mean",
        floor: float = 0.0,
        redraw: bool = True,
        steps_per_round: int = 1,
        warm_up: int = 0,
        max_evaluations: int | None = None,
        average: float | None = None,
        **options: Any,
    ) -> None:
        """Configure the rounds and pass the rest to `DiffusionModule`.

        Args:
            denoiser: the pre-trained model, usually a `Snapshot` of another run, or an adaptation around one.
            loss: its loss.
            objective: to be maximized.
            sampling: samples, sampler, metrics and the `GradientGuidance` of each round.
            target: rule for the label of the next round; default `GainTarget(0.2)`.
            replay: the weights w_{k,i}; default `GeometricReplay(0.5)`.
            at: as in `GradientOptimization`.
            floor: as in `GradientOptimization`.
            redraw: as in `GradientOptimization`.
            steps_per_round: optimizer steps between two rounds.
            warm_up: rounds drawn before the first step with the pre-trained model (algorithm 1); they are not replayed.
            max_evaluations: training stops before a round after this number of network calls: those of samplers, and
                one for each training example.
            average: sigma_rel of the average that rounds and evaluations draw from; None: the weights themselves.
            **options: of `DiffusionModule`.

        Raises:
            ValueError: if steps_per_round or a budget is out of range, the pre-trained model cannot be found, or as
                `Rounds` and `DiffusionModule`.
        """
        if steps_per_round < 1 or warm_up < 0 or (max_evaluations is not None and max_evaluations < 1):
            raise ValueError(
                "GradientFineTuning needs steps_per_round >= 1, warm_up >= 0 and max_evaluations >= 1 or null, got "
                f"{steps_per_round}, {warm_up} and {max_evaluations}"
            )
        super().__init__(_pretrained(denoiser), loss, average=average, **options)
        # in a tuple: it is frozen, and neither trained, saved nor set to training mode
        self._objective = (objective.requires_grad_(False).eval(),)
        self.rounds = Rounds(objective, sampling, target, at=at, floor=floor, redraw=redraw)
        self.replay = replay or GeometricReplay()
        self.steps_per_round, self.warm_up, self.max_evaluations = steps_per_round, warm_up, max_evaluations
        self._replayed: list[Tensor] = []  # x (n, *) of each replayed round, on the CPU
        self._labels: list[Tensor] = []

    @property
    def objective(self) -> Energy:
        """The objective, which is not a submodule."""
        return self._objective[0]

    def setup(self, stage: str) -> None:
        """As `DiffusionModule`, with a check that each process has samples to draw.

        Raises:
            ValueError: if there are fewer samples in a round than processes, or the folder holds rounds of algorithm 1.
        """
        super().setup(stage)
        count, world = self.rounds.sampling.num_samples, self.trainer.world_size
        if count < world:
            raise ValueError(f"sampling.num_samples is {count}; {world} processes need at least one sample each")
        if (Path(self.trainer.default_root_dir) / "rounds" / "state.ckpt").exists():
            folder = self.trainer.default_root_dir
            raise ValueError(
                f"{folder} holds rounds of GradientOptimization; expected another trainer.default_root_dir"
            )

    def missing(self, models: Models) -> Iterator[str]:
        """Yield what the evaluations and the rounds of a fit will miss."""
        yield from super().missing(models)
        yield from self.rounds.missing(self._data.reference(self.device))

    # Rounds

    def on_train_start(self) -> None:
        """Remove the records of rounds that will be drawn again."""
        if self.rounds.round and self.trainer.is_global_zero:
            write_records(self.trainer.default_root_dir, self.rounds.history)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        """Draw the rounds that are due; return -1, which ends training, if the budget is spent."""
        while self.rounds.round * self.steps_per_round <= self.global_step + self.warm_up * self.steps_per_round:
            if self.max_evaluations is not None and self.evaluations_spent >= self.max_evaluations:
                spent = f"{self.evaluations_spent} network calls are spent"
                rank_zero_info(f"{spent}: training ends before round {self.rounds.round}")
                self.trainer.should_stop = True
                return -1
            self._draw_round()
        return None

    @property
    def evaluations_spent(self) -> int:
        """Network calls of all rounds so far, and one for each training example."""
        return self.rounds.evaluations + self.images_seen

    def _draw_round(self) -> None:
        """Draw one round on all processes with the current weights in eval mode."""
        was_training = self.denoiser.training
        self.objective.to(self.device)  # a wait for each weight, in the first round
        main = self.denoiser.eval() if self.average is None or not self.images_seen else self._main_model()
        data, sampling = self._data, self.rounds.sampling
        models = RunModels(
            main,
            run=self.trainer.default_root_dir,
            device=self.device,
            until=self.images_seen,
            prompts=prompts_of(data, main),
        )
        self.rounds.start(models, data, self.device)
        samples = self.rounds.indices(self._num_labels)
        numbers = range(self.global_rank, sampling.num_samples, self.trainer.world_size)  # of this process
        for first in range(0, len(numbers), sampling.batch_size):
            rows = [samples[i] for i in numbers[first : first + sampling.batch_size]]
            index, condition = (to_device(torch.stack(column), self.device) for column in zip(*rows, strict=True))
            self.rounds.draw(SampleBatch(index, condition), data)
        record = self.rounds.finish()
        self.denoiser.train(was_training)
        if self.rounds.round > self.warm_up:
            assert self.rounds.samples is not None and self.rounds.condition is not None
            self._replayed.append(self.rounds.samples)
            self._labels.append(self.rounds.condition)
        for logger in self.loggers:
            values = {f"rounds/{name}": value for name, value in record.items() if name != "round"}
            logger.log_metrics(values, step=int(record["round"]))
        if self.trainer.is_global_zero:
            self.rounds.append_history(self.trainer.default_root_dir)

    # Training

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean loss of one micro-batch in which round i has the share w_{k,i}."""
        seen = self.images_seen + self._pending_images
        generator = torch.Generator().manual_seed(mix(self.seed, "replay", seen, self.global_rank))
        weights = self.replay.weights(len(self._replayed))
        used = [i for i, weight in enumerate(weights) if weight > _NEGLIGIBLE]
        replayed, labels = (torch.stack([rounds[i] for i in used]) for rounds in (self._replayed, self._labels))
        prompts = prompts_of(self._data, self.denoiser)
        mixed = mixture(batch, replayed, labels, [weights[i] for i in used], generator, prompts=prompts)
        return super().training_step(mixed, batch_idx)

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the rounds and their replayed samples."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["rounds"] = self.rounds.state_dict() | {"found": self._replayed, "labels": self._labels}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the rounds and their replayed samples.

        Checkpoints of older versions hold the weights of the objective, which are left out.
        """
        for name in [name for name in checkpoint["state_dict"] if name.startswith(self.unsaved)]:
            del checkpoint["state_dict"][name]
        trained = len(list(self.parameters()))
        for state in checkpoint.get("optimizer_states", []):
            if len(state["param_groups"]) == 1:
                state["param_groups"][0]["params"] = state["param_groups"][0]["params"][:trained]
        super().on_load_checkpoint(checkpoint)
        self.rounds.load_state_dict(checkpoint["rounds"])
        self.rounds.read_history(self.trainer.default_root_dir)
        self._replayed, self._labels = list(checkpoint["rounds"]["found"]), list(checkpoint["rounds"]["labels"])


def _pretrained(denoiser: Denoiser) -> Denoiser:
    """Return `denoiser` with its references replaced; of a direct reference all weights are trained."""
    models = RunModels(denoiser, run=".", device=torch.device("cpu"))
    model = denoiser.resolve(models)
    return model.requires_grad_(True).train() if isinstance(denoiser, Reference) else model
