"""The tables of one round: what each process draws goes into its rows, and a sum over processes completes them.

The records of finished rounds on disk: `rounds/history.jsonl` in the folder of a run, one line each.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lightning_guide.utils.distributed import total_over_processes
from lightning_guide.utils.files import atomic

__all__ = ["RoundBuffers", "append_record", "read_records", "write_records"]


@dataclass
class RoundBuffers:
    """Rows of all n samples, zero where another process fills them in until `reduce`.

    Attributes:
        x: samples (n, *).
        value: of the objective (n,).
        condition: labels (n,).
        gradient: of the objective at each sample (n, *seen_shape), if it is taken there.
        target: y of each (n,).
        seen: sum (1, *seen_shape) of what the objective sees, otherwise.
        spent: samples drawn by this process, network calls and seconds, (3,).
    """

    x: Tensor
    value: Tensor
    condition: Tensor
    spent: Tensor
    gradient: Tensor | None = None
    target: Tensor | None = None
    seen: Tensor | None = None

    @classmethod
    def zeros(cls, count: int, x: Tensor, condition: Tensor) -> RoundBuffers:
        """Tables of `count` samples like `x` (B, *) with labels like `condition` (B,)."""
        spent = torch.zeros(3, dtype=torch.float64, device=x.device)
        return cls(x.new_zeros(count, *x.shape[1:]), x.new_zeros(count), condition.new_zeros(count), spent)

    def note(self, rows: Tensor, x: Tensor, condition: Tensor, value: Tensor) -> None:
        """Fills in the samples `rows` (B,)."""
        self.x[rows], self.condition[rows], self.value[rows] = x, condition, value

    def note_gradient(self, rows: Tensor, gradient: Tensor, target: Tensor) -> None:
        """Fills in their gradients (B, *seen_shape) and targets (B,)."""
        if self.gradient is None or self.target is None:
            self.gradient = gradient.new_zeros(len(self.x), *gradient.shape[1:])
            self.target = target.new_zeros(len(self.x))
        self.gradient[rows], self.target[rows] = gradient, target

    def add_seen(self, seen: Tensor) -> None:
        """Adds what the objective sees of some samples, (B, *seen_shape)."""
        self.seen = seen.sum(0, keepdim=True) + (0 if self.seen is None else self.seen)

    def spend(self, samples: int, calls: int, seconds: float) -> None:
        """Counts `samples` with `calls` network calls each."""
        self.spent += self.spent.new_tensor([samples, samples * calls, seconds])

    def reduce(self) -> None:
        """Sums over all processes, which all have drawn something."""
        for table in (self.x, self.value, self.condition, self.spent, self.gradient, self.target, self.seen):
            if table is not None:
                total_over_processes(table)

    def statistics(self) -> dict[str, float]:
        """Objective: mean, deviation, mean of the best four; `spread`: root mean squared distance to the mean."""
        value, x = self.value.double(), self.x.double()
        spread = (x - x.mean(0)).flatten(1).square().sum(1).mean().sqrt()
        return {
            "objective": float(value.mean()),
            "objective_std": float(value.std(unbiased=False)),
            "objective_best4": float(value.topk(min(4, len(value))).values.mean()),
            "spread": float(spread),
        }


Record = dict[str, float]


def append_record(run: str | Path, record: Record, *, first: bool) -> None:
    """Adds one line; the `first` record of a run begins the file anew."""
    path = _path(run)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w" if first else "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def read_records(run: str | Path, rounds: int) -> list[Record]:
    """The records of the first `rounds` rounds; those of rounds that will be drawn again are left out."""
    path = _path(run)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines[:rounds]]


def write_records(run: str | Path, records: Sequence[Record]) -> None:
    """Writes all records at once."""
    path = _path(run)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def _path(run: str | Path) -> Path:
    return Path(run) / "rounds" / "history.jsonl"
