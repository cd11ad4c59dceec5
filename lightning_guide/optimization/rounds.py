"""Rounds of guided sampling: each draws a batch, evaluates the objective and sets the guidance of the next round.

Guo et al. 2024, https://arxiv.org/abs/2404.14743, algorithm 1. The first round is unguided. Sample i of round k depends
only on (seed, k, i) and the `Feedback` of earlier rounds, not on the number of processes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_guide.data import Batch, DataInterface, SampleBatch
from lightning_guide.denoiser import Denoiser, Models
from lightning_guide.evaluation.evaluation import Evaluation, SampleIndices
from lightning_guide.evaluation.metrics.base import SampleMetric
from lightning_guide.evaluation.sampling_loop import DrawnSamples, add_results, build_condition
from lightning_guide.guidance.gradient import GradientGuidance
from lightning_guide.objectives.energy import Energy, check_objective
from lightning_guide.optimization.feedback import Feedback
from lightning_guide.optimization.round_buffers import RoundBuffers, append_record, read_records
from lightning_guide.optimization.targets import GainTarget, Target
from lightning_guide.seeds import mix
from lightning_guide.utils.devices import to_device
from lightning_guide.utils.needs import needs_of
from lightning_guide.utils.resume import check_same_settings, describe_settings

__all__ = ["Rounds"]


class Rounds:
    """State of an optimization by sampling, with the steps `draw` and `finish`. Not a module, without global state.

    Attributes:
        round: number of the next round.
        feedback: gradient and target of the next round.
        samples: x (n, *) of the last finished round, from all processes.
        condition: labels (n,) of `samples`.
        evaluations: network calls of all rounds so far, counted per sample.
        history: one dict of numbers for each finished round.
        settings: settings that must agree for rounds to be continued, as plain data.
    """

    def __init__(
        self,
        objective: Energy,
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
            sampling: settings for drawing the samples of a round; its guidance is a `GradientGuidance`.
            target: rule for y; default `GainTarget(0.2)`.
            at: take gradients at the "mean" of a round, or at each "sample".
            floor: where a gradient has norm `floor` or less, the previous guidance is kept.
            redraw: fresh noise in each round; otherwise sample i starts from the same noise in all rounds.
            model: the frozen guided model, which must be the same when rounds are continued.

        Raises:
            ValueError: if the guidance of `sampling` is not a `GradientGuidance`, `floor` is negative, the objective
                depends on labels, or there are goals of samples that do not fit.
        """
        check_objective(objective)
        if not isinstance(sampling.guidance, GradientGuidance):
            raise ValueError(
                f"rounds need a gradient guidance in sampling.guidance, such as LookAhead, got a "
                f"{type(sampling.guidance).__name__}"
            )
        if floor < 0 or sampling.num_samples < 1:
            raise ValueError(f"rounds need floor >= 0 and num_samples >= 1, got {floor} and {sampling.num_samples}")
        self.feedback = Feedback(objective, target or GainTarget(), at=at, floor=floor)
        groups = self.feedback.rule.groups(sampling.num_samples)
        if groups and (at == "mean" or len(groups) > sampling.num_samples):
            raise ValueError(
                f"{len(groups)} goals need gradients at: sample, and as many samples; got at: {at} and num_samples "
                f"{sampling.num_samples}"
            )
        self.sampling, self.redraw = sampling, redraw
        self.round, self.evaluations = 0, 0
        self.samples: Tensor | None = None
        self.condition: Tensor | None = None
        self.history: list[dict[str, float]] = []
        self.settings = self._settings(model)
        self._guidance: GradientGuidance | None = None
        self._metrics: dict[str, SampleMetric] | None = None
        self._buffers: RoundBuffers | None = None

    def missing(self, reference: Iterable[Batch]) -> Iterator[str]:
        """Yield what the objective, the guidance and the metrics miss; `reference` holds the real data."""
        yield from needs_of(self.feedback.objective, self.sampling.guidance)
        for metric in (self.sampling.metrics or {}).values():
            yield from metric.missing(None, self.sampling.num_samples, reference)

    def indices(self, num_classes: int) -> SampleIndices:
        """Return the sample indices of each round."""
        return self.sampling.dataset(num_classes)

    def start(self, models: Models, data: DataInterface, device: torch.device) -> None:
        """Resolve the guidance in `models` and, in the first round, prepare the metrics with the real data.

        Raises:
            ValueError: if the objective, or the decoder before it, does not fit the samples.
        """
        guidance = self.sampling.guidance.resolve(models).eval()
        assert isinstance(guidance, GradientGuidance)
        self._guidance = guidance
        if self._metrics is None:
            self._try_objective(guidance, device)
            self._metrics = {name: metric.to(device) for name, metric in (self.sampling.metrics or {}).items()}
            for metric in self._metrics.values():
                metric.prepare(data.reference(device))

    @torch.no_grad()
    def _try_objective(self, guidance: GradientGuidance, device: torch.device) -> None:
        """Evaluate the objective at noise, before a round is drawn."""
        noise = torch.randn(2, *guidance.data_shape, generator=torch.Generator().manual_seed(0))
        noise = to_device(noise, device)
        self.feedback.objective.shaped_value(guidance.objective_input(guidance.sigma_data * noise))

    def draw(self, batch: SampleBatch, data: DataInterface) -> DrawnSamples:
        """Draw the samples of `batch` under the guidance of this round and evaluate the objective.

        Raises:
            ValueError: if samples are not finite, or the objective is not one finite number for each sample.
        """
        assert self._guidance is not None and self._metrics is not None, "start comes first"
        start = time.perf_counter()
        device, rows = batch.index.device, batch.index - self.sampling.first_index
        guidance = self.feedback.apply(self._guidance, rows)
        seed = mix(self.sampling.seed, "round", self.round) if self.redraw else self.sampling.seed
        # waits once a batch: seeds are on the host
        seeds = replace(self.sampling, seed=seed).seeds(batch.index.tolist())
        trajectory = self.sampling.sampler.sample(
            guidance,
            seeds=seeds,
            condition=build_condition(guidance, batch.condition, data),
            device=device,
            start=lambda noise: self.sampling.initial(noise, seeds),
        )
        # waits once a batch: the objective is not asked about samples that are not finite
        if bool((bad := ~trajectory.x.flatten(1).isfinite().all(1)).any()):
            raise ValueError(
                f"round {self.round}: {int(bad.sum())} of {len(bad)} samples are not finite, first number "
                f"{int(batch.index[bad][0])}; the strength of the guidance may be too large (its cap limits it)"
            )
        if self._buffers is None:
            for metric in self._metrics.values():
                metric.reset()
            self._buffers = RoundBuffers.zeros(self.sampling.num_samples, trajectory.x, batch.condition)
        with torch.no_grad():
            inputs = guidance.objective_input(trajectory.x)
        self.feedback.evaluate(self._buffers, rows, trajectory.x, batch.condition, inputs)
        stored = data.decode(trajectory.x)
        for metric in self._metrics.values():
            metric.update(stored, batch.condition)
        seconds = time.perf_counter() - start
        self._buffers.spend(len(rows), trajectory.evaluations, seconds)
        return DrawnSamples(batch.index, batch.condition, stored)

    @property
    def drawn(self) -> int:
        """Number of samples of the current round drawn by this process."""
        # waits, in a round that ended early alone
        return 0 if self._buffers is None else int(self._buffers.spent[0])

    def finish(self) -> dict[str, float]:
        """End the round on all processes: set the guidance of the next round and return the numbers of this one."""
        buffers, self._buffers = self._buffers, None
        assert buffers is not None and self._metrics is not None, "every process draws before a round ends"
        assert self._guidance is not None
        buffers.reduce()
        record: dict[str, float] = {"round": self.round}
        record |= self.feedback.update(buffers, self.round, self._guidance.strength)
        for name, metric in self._metrics.items():
            add_results(record, name, metric.compute())
        _, calls, seconds = buffers.spent.tolist()  # waits once a round: the host keeps records
        self.evaluations += int(calls)
        record |= {"nfe": calls / self.sampling.num_samples, "evaluations": self.evaluations, "seconds": seconds}
        # waits once a round: samples are kept on the host
        self.samples, self.condition = buffers.x.cpu(), buffers.condition.cpu()
        self.history.append(record)
        self.round += 1
        return record

    # On disk

    def _settings(self, model: Denoiser | None) -> dict[str, Any]:
        """Return the settings that must agree for rounds to be continued."""
        sampling, feedback = self.sampling, self.feedback
        parts: dict[str, Any] = {
            "at": feedback.at,
            "floor": feedback.floor,
            "redraw": self.redraw,
            "num_samples": sampling.num_samples,
            "seed": sampling.seed,
            "first_index": sampling.first_index,
            "labels": sampling.labels,
            "objective": feedback.objective,
            "target": feedback.rule,
            "guidance": sampling.guidance,
            "start": sampling.start,
            "sampler": sampling.sampler,
        }
        parts |= {} if model is None else {"denoiser": model}
        return {key: value for name, part in parts.items() for key, value in describe_settings(name, part).items()}

    def append_history(self, run: str | Path) -> None:
        """Append the newest record to the history in the run folder; process 0 only."""
        append_record(run, self.history[-1], first=self.round == 1)

    def read_history(self, run: str | Path) -> None:
        """Read the records of the finished rounds."""
        self.history = read_records(run, self.round)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that the next round depends on, as tensors and plain data."""
        numbers = {"round": self.round, "evaluations": self.evaluations, "settings": self.settings}
        feedback = {"gradient": self.feedback.gradient, "target": self.feedback.target, "prior": self.feedback.prior}
        return numbers | feedback | {"samples": self.samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state`.

        Raises:
            ValueError: if it belongs to rounds with other settings.
        """
        shared = [key for key in self.settings if key in state["settings"]]  # an older version may lack some
        saved, present = ({key: each[key] for key in shared} for each in (state["settings"], self.settings))
        place, alternative = "the checkpoint of the rounds", "another trainer.default_root_dir"
        check_same_settings(_by_name(saved), _by_name(present), place=place, alternative=alternative)
        self.round, self.evaluations = state["round"], state["evaluations"]
        self.feedback.gradient, self.feedback.target = state["gradient"], state["target"]
        self.feedback.prior, self.samples = state["prior"], state["samples"]


def _by_name(settings: dict[str, Any]) -> dict[str, Any]:
    """Return described settings in which other runs have their names alone, so that folders of runs may be moved."""
    return {
        key: Path(value).name if key.endswith(".run") and isinstance(value, str) else value
        for key, value in settings.items()
    }
