"""Two methods of energy_comparison.py on the same seeds: mean change and its 95 % interval over the seeds.

    python scripts/energy_paired.py runs/energy/comparison/cifar8.jsonl "FreeDoM + RA" FreeDoM

Both at the rate that was scored last, which is the one that tuning chose.
"""

from __future__ import annotations

import json
from pathlib import Path

from energy_comparison_report import LABEL_COLUMNS, MEASURED_COLUMNS
from energy_problems import TUNING_SEED, Scores
from jsonargparse import auto_cli
from seed_summary import show, summarize


def paired(log: str, one: str, other: str, *, problem: str = "label", steps: int = 20, count: int = 100) -> None:
    """Prints `one` minus `other`.

    Args:
        log: numbers of energy_comparison.py.
        one: a method.
        other: another one.
        problem: "label" or the name of a measurement.
        steps: as the comparison was run with.
        count: as the comparison was run with.
    """
    scored = [scored_at_seeds(Path(log), [problem, name], [steps, count]) for name in (one, other)]
    seeds = sorted(scored[0].keys() & scored[1].keys())
    if not seeds:
        raise SystemExit(f"{log} has no {problem} of {one!r} and {other!r} at {steps} steps and {count} samples")
    columns = LABEL_COLUMNS if problem == "label" else MEASURED_COLUMNS
    changes = [{key: scored[0][seed][key] - scored[1][seed][key] for key in columns} for seed in seeds]
    show({f"{one} - {other}": summarize(changes)}, columns)


def scored_at_seeds(log: Path, begin: list[str], end: list[int]) -> dict[int, Scores]:
    """seed -> scores at the rate that was scored last, tuning left out."""
    found: dict[float, dict[int, Scores]] = {}
    for line in log.read_text().splitlines():
        key, scores = json.loads(line)
        *first, rate, steps, count, seed = json.loads(key)
        if first == begin and [steps, count] == end and seed != TUNING_SEED:
            found[rate] = found.pop(rate, {}) | {seed: scores}  # the last one stands at the end
    return found[next(reversed(found))] if found else {}


if __name__ == "__main__":
    auto_cli(paired)
