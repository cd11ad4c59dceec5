"""Difference of two methods of comparison.py, paired by seeds: mean and 95 % interval over the seeds.

    python -m scripts.studies.training_free.paired runs/training_free/comparison/cifar8.jsonl "FreeDoM + RA" FreeDoM

Both methods at the rate that was scored last, which is the rate chosen by tuning.
"""

from __future__ import annotations

import json
from pathlib import Path

from scripts.lib.command_line import run_script
from scripts.lib.comparison_report import LABEL_COLUMNS, MEASURED_COLUMNS
from scripts.lib.problems import TUNING_SEED, Scores
from scripts.lib.seed_summary import show, summarize


def paired(log: str, one: str, other: str, *, problem: str = "label", steps: int = 20, count: int = 100) -> None:
    """Print the scores of `one` minus those of `other`.

    Args:
        log: file of scores written by comparison.py.
        one: a method.
        other: another method.
        problem: "label" or the name of a measurement.
        steps: those of the comparison.
        count: that of the comparison.
    """
    scored = [scored_at_seeds(Path(log), [problem, name], [steps, count]) for name in (one, other)]
    seeds = sorted(scored[0].keys() & scored[1].keys())
    if not seeds:
        raise SystemExit(f"{log} has no {problem} of {one!r} and {other!r} at {steps} steps and {count} samples")
    columns = LABEL_COLUMNS if problem == "label" else MEASURED_COLUMNS
    changes = [{key: scored[0][seed][key] - scored[1][seed][key] for key in columns} for seed in seeds]
    show({f"{one} - {other}": summarize(changes)}, columns)


def scored_at_seeds(log: Path, begin: list[str], end: list[int]) -> dict[int, Scores]:
    """Return seed -> scores at the rate that was scored last, without those of tuning."""
    found: dict[float, dict[int, Scores]] = {}
    for line in log.read_text().splitlines():
        key, scores = json.loads(line)
        *first, rate, steps, count, seed = json.loads(key)
        if first == begin and [steps, count] == end and seed != TUNING_SEED:
            found[rate] = found.pop(rate, {}) | {seed: scores}  # the rate scored last comes last
    return found[next(reversed(found))] if found else {}


if __name__ == "__main__":
    run_script(paired)
