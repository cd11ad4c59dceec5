"""Beam search of the three hyperparameters of TFG for a finished run, as in its paper.

    python -m scripts.studies.training_free.tfg_search runs/digits/main configs/training_free/tfg.yaml \\
        --metric class_agreement

Every round evaluates its new points in one call of `lightning-guide test`, with a few samples each, and scores them by
any metric of the run; the network of the metric should not be the guide. The same command continues a search that was
stopped. The winner is written as a guidance file, `tfg.yaml` in `--out`.

`lightning-guide tune` finds the same three numbers over a grid (one axis for each); this script is kept for the
published algorithm, whose points are not a grid: it climbs by doublings from small values and stops by itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from lightning_guide.commands.guidance_files import read_guidances
from scripts.lib.command_line import run_script
from scripts.lib.configs import solver
from scripts.lib.evaluations import evaluate
from scripts.studies.training_free.beam_search import FACTORS, START, Candidate, beam_search


def study(
    run: str,
    guidance: str,
    *,
    out: str = "runs/training_free/tfg_search",
    metric: str = "class_agreement",
    better: Literal["high", "low"] = "high",
    start: dict[str, float] | None = None,
    beam: int = 3,
    rounds: int = 7,
    samples: int = 64,
    steps: int = 50,
    seed: int = 1000,
) -> None:
    """Search, print and write the best point.

    Args:
        run: folder of the run.
        guidance: file with one TFG, such as configs/training_free/tfg.yaml; its rho, mu and gamma are replaced.
        out: folder for results.
        metric: name of a metric of the run.
        better: whether high or low values of it are better.
        start: first rho, mu and gamma; default 0.25, 0.25 and 0.001.
        beam: points kept after each round.
        rounds: largest number of rounds.
        samples: samples of each point.
        steps: steps of DDIM with eta = 1, the paper's sampler.
        seed: seed of the samples; results should be reported with another one.

    Raises:
        ValueError: if the file does not hold one TFG, or the run reports no such metric.
    """
    written = read_guidances([guidance])
    if len(written) != 1 or not next(iter(written.values()))["class_path"].endswith("TFG"):
        raise ValueError(f"{guidance} holds {', '.join(written)}; expected one guidance, of the class TFG")
    ((name, tfg),) = written.items()
    sampler = solver("Euler", steps) | {"class_path": "lightning_guide.samplers.DDIM"}
    sampler["init_args"] = sampler["init_args"] | {"eta": 1.0}
    common = {"num_samples": samples, "batch_size": samples, "seed": seed, "sampler": sampler}

    def at(point: Candidate) -> dict[str, Any]:
        return tfg | {"init_args": tfg["init_args"] | dict(point)}

    def scores(points: Sequence[Candidate]) -> list[float]:
        names = [" ".join(f"{key}={value:g}" for key, value in point.items()) for point in points]
        evaluations = {each: {**common, "guidance": at(point)} for each, point in zip(names, points, strict=True)}
        results = evaluate(f"{run}/config.yaml", evaluations, Path(out) / names[0].replace(" ", "_"))
        if metric not in results[names[0]]:
            raise ValueError(f"the run reports no {metric!r}; there are {', '.join(results[names[0]])}")
        found = [results[each][metric] * (1 if better == "high" else -1) for each in names]
        for each, score in zip(names, found, strict=True):
            print(f"{each:36} {abs(score):.4f}", flush=True)
        return found

    found = beam_search(scores, start=start or START, factors=FACTORS, beam=beam, rounds=rounds)
    record = {"metric": metric, "best": found.best, "rounds": found.rounds, "trials": found.trials}
    (Path(out) / "search.json").write_text(json.dumps(record, indent=1))
    chosen = {"model": {"init_args": {"guidances": {name: at(found.best)}}}}
    (Path(out) / "tfg.yaml").write_text(yaml.safe_dump(chosen, sort_keys=False))
    print(f"best of {len(found.trials)}: {dict(found.best)}")


if __name__ == "__main__":
    run_script(study)
