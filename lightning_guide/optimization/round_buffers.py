"""Buffers of one round, filled by all processes, and records of finished rounds in `rounds/history.jsonl` of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lightning_guide.utils.distributed import all_reduce_sum
from lightning_guide.utils.files import append_to, atomic, parse_json
from lightning_guide.utils.resume import plain_data

__all__ = ["RoundBuffers", "append_record", "read_records", "write_records"]


@dataclass
class RoundBuffers:
    """Rows of all n samples. Each process fills in its own; `reduce` sums over processes.

    Attributes:
        x: samples (n, *).
        value: of the objective (n,).
        condition: labels (n,).
        spent: samples drawn by this process, network calls and seconds, (3,).
        gradient: of the objective at each sample (n, *input_shape), if it is taken there.
        target: y of each sample (n,), likewise.
        input_sum: sum (1, *input_shape) of the inputs of the objective, otherwise.
    """

    x: Tensor
    value: Tensor
    condition: Tensor
    spent: Tensor
    gradient: Tensor | None = None
    target: Tensor | None = None
    input_sum: Tensor | None = None

    @classmethod
    def zeros(cls, count: int, x: Tensor, condition: Tensor) -> RoundBuffers:
        """Allocate buffers of `count` samples like `x` (B, *) with labels like `condition` (B,)."""
        spent = torch.zeros(3, dtype=torch.float64, device=x.device)
        return cls(x.new_zeros(count, *x.shape[1:]), x.new_zeros(count), condition.new_zeros(count), spent)

    def write_samples(self, rows: Tensor, x: Tensor, condition: Tensor, value: Tensor) -> None:
        """Write the samples `rows` (B,)."""
        self.x[rows], self.condition[rows], self.value[rows] = x, condition, value

    def write_gradients(self, rows: Tensor, gradient: Tensor, target: Tensor) -> None:
        """Write the gradients (B, *input_shape) and targets (B,) of the samples `rows` (B,)."""
        if self.gradient is None or self.target is None:
            self.gradient = gradient.new_zeros(len(self.x), *gradient.shape[1:])
            self.target = target.new_zeros(len(self.x))
        self.gradient[rows], self.target[rows] = gradient, target

    def add_inputs(self, inputs: Tensor) -> None:
        """Add inputs of the objective (B, *input_shape) to their sum."""
        self.input_sum = inputs.sum(0, keepdim=True) + (0 if self.input_sum is None else self.input_sum)

    def spend(self, samples: int, calls: int, seconds: float) -> None:
        """Count `samples` with `calls` network calls each."""
        # waits once a batch of a round: the host counted
        self.spent += self.spent.new_tensor([samples, samples * calls, seconds])

    def reduce(self) -> None:
        """Sum over all processes, each of which has drawn samples."""
        for buffer in (self.x, self.value, self.condition, self.spent, self.gradient, self.target, self.input_sum):
            if buffer is not None:
                all_reduce_sum(buffer)

    def statistics(self, first: Tensor, groups: Mapping[str, slice]) -> dict[str, float]:
        """Return mean, deviation and best-four mean of the objective, and rms distances of the samples.

        `spread` is that to their mean, `distance` that of each to the same sample of the `first` round (n, *). The mean
        of the objective and the distance are also those of each of the `groups`.
        """
        value, x = self.value.double(), self.x.double()
        spread = (x - x.mean(0)).flatten(1).square().sum(1).mean().sqrt()
        # waits once a round: the first round is kept on the host
        moved = (x - first.to(x)).flatten(1).square().sum(1)
        numbers = {
            "objective": value.mean(),
            "objective_std": value.std(unbiased=False),
            "objective_best4": value.topk(min(4, len(value))).values.mean(),
            "spread": spread,
            "distance": moved.mean().sqrt(),
        }
        # waits once a round: the host keeps records
        record = dict(zip(numbers, torch.stack(list(numbers.values())).tolist(), strict=True))
        for name, rows in groups.items():
            record[f"objective_{name}"] = float(value[rows].mean())
            record[f"distance_{name}"] = float(moved[rows].mean().sqrt())
        return record


Record = dict[str, float]


def append_record(run: str | Path, record: Record, *, first: bool) -> None:
    """Append one line; the `first` record of a run replaces the file."""
    path = _path(run)
    with append_to(path) as file:
        if first:
            file.truncate(0)
        file.write(_line(record).encode())


def read_records(run: str | Path, rounds: int) -> list[Record]:
    """Return the records of the first `rounds` rounds; later ones will be drawn again."""
    path = _path(run)
    lines = path.read_bytes().splitlines() if path.exists() else []
    records = [parse_json(line, path) for line in lines[:rounds]]
    return [{name: math.nan if value is None else value for name, value in record.items()} for record in records]


def write_records(run: str | Path, records: Sequence[Record]) -> None:
    """Write all records at once."""
    path = _path(run)
    with atomic(path) as temporary:
        temporary.write_text("".join(map(_line, records)), encoding="utf-8")


def _line(record: Record) -> str:
    """Return a record as strict JSON; numbers that are not finite are null."""
    return json.dumps(plain_data(record), allow_nan=False) + "\n"


def _path(run: str | Path) -> Path:
    return Path(run) / "rounds" / "history.jsonl"
