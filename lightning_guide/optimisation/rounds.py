r"""Rounds of guided sampling: each draws a batch, asks the objective about it and sets the guidance of the next.

Guo et al. 2024, https://arxiv.org/abs/2404.14743, algorithm 1. The first round is unguided. The gradient is taken at
the mean of the batch (the paper), or for each sample at that sample (their published code), over all processes alike:
sample i of round k depends on (seed, k, i) and what the rounds before have left.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from lightning_guide.data import DataView, SampleBatch
from lightning_guide.denoiser import Denoiser, Models
from lightning_guide.evaluation.evaluation import Evaluation, SampleIndices
from lightning_guide.evaluation.loop import DrawnSamples
from lightning_guide.evaluation.metric import SampleMetric
from lightning_guide.guidance.gradient import GradientGuidance, Tilt
from lightning_guide.objectives.objective import Objective
from lightning_guide.optimisation.contraction import overshoot
from lightning_guide.optimisation.history import append_record, read_records
from lightning_guide.optimisation.settings import check_same, described
from lightning_guide.optimisation.tables import Tables
from lightning_guide.optimisation.targets import Gain, Target
from lightning_guide.seeds import SampleSeeds, mix

__all__ = ["Rounds"]


class Rounds:
    """The state of an optimisation by sampling, and its steps `draw` and `finish`. Not a module, and no global state.

    Attributes:
        round: number of the round that is drawn next.
        gradient: g (1 or n, *) of its guidance, None in the first round.
        target: y (1 or n,).
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
            objective: to be maximised.
            sampling: how a round draws its samples; its guidance is a `GradientGuidance`.
            target: rule for y; default `Gain(0.2)`.
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
        self.objective, self.sampling, self.rule = objective, sampling, target or Gain()
        self.at, self.floor, self.redraw = at, floor, redraw
        self.round, self.evaluations = 0, 0
        self.gradient: Tensor | None = None
        self.target: Tensor | None = None
        self.samples: Tensor | None = None
        self.condition: Tensor | None = None
        self.history: list[dict[str, float]] = []
        self.settings = self._settings(model)
        self._prior: Tensor | None = None
        self._warned: set[str] = set()
        self._guidance: GradientGuidance | None = None
        self._metrics: dict[str, SampleMetric] | None = None
        self._tables: Tables | None = None

    def indices(self, num_classes: int) -> SampleIndices:
        """The samples of each round."""
        return self.sampling.dataset(num_classes)

    def begin(self, models: Models, data: DataView, device: torch.device) -> None:
        """Resolves the guidance in `models` and, once, shows the metrics the real data."""
        guidance = self.sampling.guidance.resolve(models).eval()
        assert isinstance(guidance, GradientGuidance)
        if guidance.token_channels:
            raise ValueError("rounds of gradient guidance draw labels; this model is told embeddings (token_channels)")
        self._guidance = guidance
        if self._metrics is None:
            self._metrics = {name: metric.to(device) for name, metric in (self.sampling.metrics or {}).items()}
            for metric in self._metrics.values():
                metric.prepare(data.reference(device))

    def draw(self, batch: SampleBatch, data: DataView) -> DrawnSamples:
        """Draws the samples of `batch` under the guidance of this round, and asks the objective about them.

        Raises:
            ValueError: if the objective is not one finite number for each sample, or does not fit their shape.
        """
        assert self._guidance is not None and self._metrics is not None, "begin comes first"
        begin = time.perf_counter()
        device, rows = batch.index.device, batch.index - self.sampling.first_index
        guidance = self._guidance
        if self.gradient is not None and self.target is not None:
            mine = rows if len(self.gradient) > 1 else rows[:1] * 0
            guidance = guidance.towards(self.gradient[mine.cpu()].to(device), self.target[mine.cpu()].to(device))
        seed = mix(self.sampling.seed, "round", self.round) if self.redraw else self.sampling.seed
        seeds = SampleSeeds(seed, batch.index.tolist())
        trajectory = self.sampling.sampler.sample(
            guidance,
            seeds=seeds,
            condition=batch.condition if guidance.num_classes else None,
            device=device,
            start=lambda noise: self.sampling.initial(noise, seeds),
        )
        self._note(rows, trajectory.x, batch.condition)
        stored = data.decode(trajectory.x)
        for metric in self._metrics.values():
            metric.update(stored, batch.condition)
        seconds = time.perf_counter() - begin
        assert self._tables is not None
        self._tables.spend(len(rows), trajectory.evaluations, seconds)
        return DrawnSamples(batch.index, batch.condition, stored)

    @property
    def drawn(self) -> int:
        """Samples of the present round that this process has drawn."""
        return 0 if self._tables is None else int(self._tables.spent[0])

    def _note(self, rows: Tensor, x: Tensor, condition: Tensor) -> None:
        """Writes samples, values and, where they are taken at samples, gradients into the tables."""
        assert self._guidance is not None and self._metrics is not None
        if self._tables is None:
            for metric in self._metrics.values():
                metric.reset()
            self._tables = Tables.zeros(self.sampling.num_samples, x, condition)
        with torch.no_grad():
            seen = self._guidance.seen(x)
        if self.at == "sample":
            value, gradient = self.objective.value_and_gradient(seen)
            self._tables.note(rows, x, condition, value)
            target = self.rule.at((gradient * seen).flatten(1).sum(1), value)
            self._tables.note_gradient(rows, gradient, target)
        else:
            with torch.no_grad():
                value = self.objective.value(seen)
            self._tables.note(rows, x, condition, value)
            self._tables.add_seen(seen)

    def finish(self) -> dict[str, float]:
        """Ends the round on all processes together: sets the guidance of the next one, returns this one's numbers."""
        tables, self._tables = self._tables, None
        assert tables is not None and self._metrics is not None, "every process draws before a round ends"
        tables.reduce()
        count = self.sampling.num_samples
        record: dict[str, float] = {"round": self.round}
        if self.at == "sample":
            assert tables.gradient is not None and tables.target is not None
            gradient, target = tables.gradient, tables.target
        else:
            assert tables.seen is not None
            mean = tables.seen / count
            at_mean, gradient = self.objective.value_and_gradient(mean)
            target = self.rule.at((gradient * mean).flatten(1).sum(1), at_mean)
            record["objective_of_mean"] = float(at_mean)
        record |= tables.statistics()
        record |= self._set(gradient.cpu(), target.cpu())
        if self._prior is None:
            self._prior = tables.x.cpu()
        record |= self._contraction(tables.x)
        for name, metric in self._metrics.items():
            for key, number in metric.compute().items():
                record[key if key not in record else f"{name}_{key}"] = float(number)
        _, calls, seconds = tables.spent.tolist()
        self.evaluations += int(calls)
        record |= {"nfe": calls / count, "evaluations": self.evaluations, "seconds": seconds}
        self.samples, self.condition = tables.x.cpu(), tables.condition.cpu()
        self.history.append(record)
        self.round += 1
        return record

    def _set(self, gradient: Tensor, target: Tensor) -> dict[str, float]:
        """Takes over a new guidance; where the gradient vanishes the old one stays."""
        norm = gradient.flatten(1).norm(dim=1)
        vanished = norm <= self.floor
        if bool(vanished.any()):
            self._say(
                "vanished",
                f"round {self.round}: the gradient of the objective vanishes at {int(vanished.sum())} of {len(norm)} "
                "points; they keep the guidance they had (without one they are drawn unguided), and the number is "
                "logged as 'vanished'",
            )
            if self.gradient is not None and self.target is not None:
                keep = vanished.reshape(-1, *[1] * (gradient.ndim - 1))
                gradient = torch.where(keep, self.gradient, gradient)
                target = torch.where(vanished, self.target, target)
        self.gradient, self.target = gradient, target
        return {"gradient_norm": float(norm.double().mean()), "vanished": float(vanished.sum())}

    def _contraction(self, x: Tensor) -> dict[str, float]:
        """The bound on delta or eta, after rounds 1, 2, 4, 8 ...; a warning if it is passed."""
        assert self._guidance is not None and self._prior is not None and self.gradient is not None
        strength = self._guidance.strength
        noise: float | None = None
        if isinstance(strength, Tilt):
            name, setting, unit = "eta", strength.eta, 1.0
        elif isinstance(self.rule, Gain) and strength.noise is not None:
            noise = strength.noise
            name, setting, unit = "delta", self.rule.delta, noise**2
        else:
            return {}
        count = self.round + 1
        if count & (count - 1) or self.gradient.shape[1:] != self._prior.shape[1:]:
            return {}
        try:
            curve = overshoot(self.objective, x.mean(0, keepdim=True), self._prior.to(x), noise=noise)
        except RuntimeError as error:  # not twice differentiable
            rank_zero_info(f"round {self.round}: no bound on {name}, the objective has no curvature here ({error})")
            return {}
        if not curve * setting < unit:
            self._say(
                "contraction",
                f"round {self.round}: {name} = {setting:g} is too large for rounds to contract near their present "
                f"mean; expected less than {unit / curve:.3g}, as the curvature of the objective has it; they may "
                "oscillate short of the optimum",
            )
        return {"contraction": curve * setting / unit}

    def _say(self, what: str, message: str) -> None:
        """Warns once of each kind of thing."""
        if what not in self._warned:
            self._warned.add(what)
            rank_zero_warn(message)

    # On disk

    def _settings(self, model: Denoiser | None) -> dict[str, Any]:
        """What two rounds must share for one to continue the other."""
        chosen = self.sampling
        numbers: dict[str, Any] = {
            "at": self.at,
            "floor": self.floor,
            "redraw": self.redraw,
            "num_samples": chosen.num_samples,
        }
        numbers |= {"seed": chosen.seed, "first_index": chosen.first_index, "labels": chosen.labels}
        named: dict[str, Any] = {
            "objective": self.objective,
            "target": self.rule,
            "guidance": chosen.guidance,
            "start": chosen.start,
        }
        named |= {"sampler": chosen.sampler} | ({} if model is None else {"denoiser": model})
        return numbers | {key: value for name in named for key, value in described(name, named[name]).items()}

    def append_history(self, run: str | Path) -> None:
        """Adds the newest record to the history in the folder of the run; process 0 only."""
        append_record(run, self.history[-1], first=self.round == 1)

    def read_history(self, run: str | Path) -> None:
        """Takes up the records of the rounds that are finished."""
        self.history = read_records(run, self.round)

    def state_dict(self) -> dict[str, Any]:
        """All that the next round depends on, and samples before and after, as tensors and plain data."""
        numbers = {"round": self.round, "evaluations": self.evaluations, "settings": self.settings}
        guidance = {"gradient": self.gradient, "target": self.target}
        return numbers | guidance | {"prior": self._prior, "samples": self.samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from there.

        Raises:
            ValueError: if it belongs to rounds of another kind.
        """
        check_same(state["settings"], self.settings)
        self.round, self.evaluations = state["round"], state["evaluations"]
        self.gradient, self.target = state["gradient"], state["target"]
        self._prior, self.samples = state["prior"], state["samples"]
