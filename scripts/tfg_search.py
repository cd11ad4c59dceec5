"""The three numbers of TFG for a finished run, by the search of its paper: a beam of doublings.

    python scripts/tfg_search.py runs/digits/main configs/training_free/tfg.yaml --metric class_agreement

Every round evaluates its new points side by side by `lightning-guide test`, with a few samples each, and scores them by
any metric that the run reports; the judge should be another network than the guide. Stopped and started again, it
continues: what has been evaluated is not drawn again. The winner is written as a guidance file, `tfg.yaml` in `--out`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import auto_cli
from run_evaluations import evaluate, solver

from lightning_guide.commands.guidance_files import read_guidances
from scripts.studies.training_free.beam_search import FACTORS, START, Candidate, beam_search


def study(
    run: str,
    guidance: str,
    *,
    out: str = "runs/energy/tfg_search",
    metric: str = "class_agreement",
    better: Literal["high", "low"] = "high",
    start: dict[str, float] | None = None,
    beam: int = 3,
    rounds: int = 7,
    samples: int = 64,
    steps: int = 50,
    seed: int = 1000,
) -> None:
    """Searches, prints and writes the best point.

    Args:
        run: folder of the run.
        guidance: file with one TFG, such as configs/training_free/tfg.yaml; its rho, mu and gamma are replaced.
        out: folder of everything.
        metric: of the run, by name.
        better: whether high or low values are.
        start: of rho, mu and gamma; default .25, .25 and .001.
        beam: points that go on.
        rounds: at most.
        samples: of each point.
        steps: of DDIM with eta = 1, the paper's sampler.
        seed: of the samples; results should be reported with another one.

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
        asked = {each: {**common, "guidance": at(point)} for each, point in zip(names, points, strict=True)}
        results = evaluate(f"{run}/config.yaml", asked, Path(out) / names[0].replace(" ", "_"))
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
    auto_cli(study)
