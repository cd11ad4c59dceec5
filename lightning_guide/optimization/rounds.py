"""Rounds of guided sampling: each draws a batch, asks the objective about it and sets the guidance of the next.

Guo et al. 2024, https://arxiv.org/abs/2404.14743, algorithm 1. The first round is unguided. Sample i of round k depends
on (seed, k, i) and what the rounds before have left (`Feedback`), on any number of processes.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_guide.data import DataInterface, SampleBatch
from lightning_guide.denoiser import Denoiser, Models
from lightning_guide.evaluation.evaluation import Evaluation, SampleIndices
from lightning_guide.evaluation.metrics.base import SampleMetric
from lightning_guide.evaluation.sampling_loop import DrawnSamples, add_results
from lightning_guide.guidance.gradient import GradientGuidance
from lightning_guide.objectives.objective import Objective
from lightning_guide.optimization.feedback import Feedback
from lightning_guide.optimization.round_buffers import RoundBuffers, append_record, read_records
from lightning_guide.optimization.targets import GainTarget, Target
from lightning_guide.seeds import SampleSeeds, mix
from lightning_guide.utils.resume import check_same_settings, describe_settings

__all__ = ["Rounds"]


class Rounds:
    """The state of an optimization by sampling, and its steps `draw` and `finish`. Not a module, and no global state.

    Attributes:
        round: number of the round that is drawn next.
        feedback: where it is led.
        samples: x (n, *) of the round that was finished last, all processes together, and `condition` (n,) theirs.
        evaluations: network calls of all rounds so far, each sample's counted.
        history: one dict of numbers for each finished round.
        settings: what two rounds must share for one to continue the other, as plain data.
    """

    def __init__(
        self,
        objective: Objective,
        sampling: Evaluation,
        target: Target | None = None,
        *,
        at: Literal["mean", "sample"] = "mean",
        floor: float = 0.0,
        redraw: bool = True,
        model: Denoiser | None = None,
    ) -> None:
        """Configures the rounds.

        Args:
            objective: to be maximized.
            sampling: how a round draws its samples; its guidance is a `GradientGuidance`.
            target: rule for y; default `GainTarget(0.2)`.
            at: where gradients are taken: at the "mean" of a round, or at each "sample".
            floor: a gradient of norm `floor` or less says nothing; where it occurs the guidance before stays.
            redraw: fresh noise in each round; otherwise sample i begins with the same noise in all of them.
            model: the frozen model that is guided, to be the same wherever rounds are continued.

        Raises:
            ValueError: if the guidance of `sampling` is none by gradients, or `floor` is negative.
        """
        if not isinstance(sampling.guidance, GradientGuidance):
            raise ValueError(
                f"rounds need a gradient guidance in sampling.guidance, such as LookAhead, got a "
                f"{type(sampling.guidance).__name__}"
            )
        if floor < 0 or sampling.num_samples < 1:
            raise ValueError(f"rounds need floor >= 0 and num_samples >= 1, got {floor} and {sampling.num_samples}")
        self.feedback = Feedback(objective, target or GainTarget(), at=at, floor=floor)
        self.sampling, self.redraw = sampling, redraw
        self.round, self.evaluations = 0, 0
        self.samples: Tensor | None = None
        self.condition: Tensor | None = None
        self.history: list[dict[str, float]] = []
        self.settings = self._settings(model)
        self._guidance: GradientGuidance | None = None
        self._metrics: dict[str, SampleMetric] | None = None
        self._tables: RoundBuffers | None = None

    def indices(self, num_classes: int) -> SampleIndices:
        """The samples of each round."""
        return self.sampling.dataset(num_classes)

    def begin(self, models: Models, data: DataInterface, device: torch.device) -> None:
        """Resolves the guidance in `models` and, once, shows the metrics the real data.

        Raises:
            ValueError: if the model is told embeddings.
        """
        guidance = self.sampling.guidance.resolve(models).eval()
        assert isinstance(guidance, GradientGuidance)
        if guidance.token_channels:
            raise ValueError("rounds of gradient guidance draw labels; this model is told embeddings (token_channels)")
        self._guidance = guidance
        if self._metrics is None:
            self._metrics = {name: metric.to(device) for name, metric in (self.sampling.metrics or {}).items()}
            for metric in self._metrics.values():
                metric.prepare(data.reference(device))

    def draw(self, batch: SampleBatch, data: DataInterface) -> DrawnSamples:
        """Draws the samples of `batch` under the guidance of this round, and asks the objective about them.

        Raises:
            ValueError: if the objective is not one finite number for each sample, or does not fit their shape.
        """
        assert self._guidance is not None and self._metrics is not None, "begin comes first"
        begin = time.perf_counter()
        device, rows = batch.index.device, batch.index - self.sampling.first_index
        guidance = self.feedback.lead(self._guidance, rows)
        seed = mix(self.sampling.seed, "round", self.round) if self.redraw else self.sampling.seed
        seeds = SampleSeeds(seed, batch.index.tolist())
        trajectory = self.sampling.sampler.sample(
            guidance,
            seeds=seeds,
            condition=batch.condition if guidance.num_classes else None,
            device=device,
            start=lambda noise: self.sampling.initial(noise, seeds),
        )
        if self._tables is None:
            for metric in self._metrics.values():
                metric.reset()
            self._tables = RoundBuffers.zeros(self.sampling.num_samples, trajectory.x, batch.condition)
        with torch.no_grad():
            seen = guidance.seen(trajectory.x)
        self.feedback.ask(self._tables, rows, trajectory.x, batch.condition, seen)
        stored = data.decode(trajectory.x)
        for metric in self._metrics.values():
            metric.update(stored, batch.condition)
        seconds = time.perf_counter() - begin
        self._tables.spend(len(rows), trajectory.evaluations, seconds)
        return DrawnSamples(batch.index, batch.condition, stored)

    @property
    def drawn(self) -> int:
        """Samples of the present round that this process has drawn."""
        return 0 if self._tables is None else int(self._tables.spent[0])

    def finish(self) -> dict[str, float]:
        """Ends the round on all processes together: sets the guidance of the next one, returns this one's numbers."""
        tables, self._tables = self._tables, None
        assert tables is not None and self._metrics is not None, "every process draws before a round ends"
        assert self._guidance is not None
        tables.reduce()
        record: dict[str, float] = {"round": self.round}
        record |= self.feedback.take(tables, self.round, self._guidance.strength)
        for name, metric in self._metrics.items():
            add_results(record, name, metric.compute())
        _, calls, seconds = tables.spent.tolist()
        self.evaluations += int(calls)
        record |= {"nfe": calls / self.sampling.num_samples, "evaluations": self.evaluations, "seconds": seconds}
        self.samples, self.condition = tables.x.cpu(), tables.condition.cpu()
        self.history.append(record)
        self.round += 1
        return record

    # On disk

    def _settings(self, model: Denoiser | None) -> dict[str, Any]:
        """What two rounds must share for one to continue the other."""
        chosen, feedback = self.sampling, self.feedback
        parts: dict[str, Any] = {
            "at": feedback.at,
            "floor": feedback.floor,
            "redraw": self.redraw,
            "num_samples": chosen.num_samples,
            "seed": chosen.seed,
            "first_index": chosen.first_index,
            "labels": chosen.labels,
            "objective": feedback.objective,
            "target": feedback.rule,
            "guidance": chosen.guidance,
            "start": chosen.start,
            "sampler": chosen.sampler,
        }
        parts |= {} if model is None else {"denoiser": model}
        return {key: value for name, part in parts.items() for key, value in describe_settings(name, part).items()}

    def append_history(self, run: str | Path) -> None:
        """Adds the newest record to the history in the folder of the run; process 0 only."""
        append_record(run, self.history[-1], first=self.round == 1)

    def read_history(self, run: str | Path) -> None:
        """Takes up the records of the rounds that are finished."""
        self.history = read_records(run, self.round)

    def state_dict(self) -> dict[str, Any]:
        """All that the next round depends on, and samples before and after, as tensors and plain data."""
        numbers = {"round": self.round, "evaluations": self.evaluations, "settings": self.settings}
        led = {"gradient": self.feedback.gradient, "target": self.feedback.target, "prior": self.feedback.prior}
        return numbers | led | {"samples": self.samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from there.

        Raises:
            ValueError: if it belongs to rounds of another kind.
        """
        check_same_settings(state["settings"], self.settings)
        self.round, self.evaluations = state["round"], state["evaluations"]
        self.feedback.gradient, self.feedback.target = state["gradient"], state["target"]
        self.feedback.prior, self.samples = state["prior"], state["samples"]
