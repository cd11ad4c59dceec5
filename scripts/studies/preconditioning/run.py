"""EDM, velocity and flow models trained with equal budgets: unguided and autoguided.

    lightning-guide fit -c configs/cifar8/main.yaml       # and velocity.yaml, flow.yaml
    python -m scripts.studies.preconditioning.run '[runs/cifar8/main, runs/cifar8/velocity, runs/cifar8/flow]' \
        --out runs/cifar8/preconditioning

Each run is sampled with the same sampler, grid and seeds, by itself and guided by its own earlier snapshots. The best
guider of each run is chosen on a seed of its own.
"""

from __future__ import annotations

from pathlib import Path

from scripts.lib.command_line import run_script
from scripts.lib.configs import Solver, class_config, solver
from scripts.lib.evaluations import evaluate, over_seeds
from scripts.lib.seed_summary import Metrics, show


def study(
    runs: list[str],
    *,
    out: str,
    ages: list[str] = ["1/4", "1/2.5"],  # noqa: B006
    weights: list[float] = [1.5, 2.0, 3.0],  # noqa: B006
    width: float = 0.1,
    seeds: int = 5,
    num_samples: int = 1000,
    sampler: Solver = "Heun",
    num_steps: int = 12,
    batch_size: int = 250,
) -> None:
    """Choose the guider of each run, evaluate it over seeds and print a table.

    Args:
        runs: folders of finished runs.
        out: folder for the results.
        ages: fractions of the training at which guiders are taken.
        weights: guidance weights.
        width: sigma_rel of the guiders.
        seeds: number of sampling seeds; the guider is chosen on another one.
        num_samples: samples for each point and seed.
        sampler: class of the sampler.
        num_steps: steps of EDM's grid.
        batch_size: samples in one network call.
    """
    settings = {"num_samples": num_samples, "batch_size": batch_size, "sampler": solver(sampler, num_steps)}
    table: dict[str, dict[str, Metrics]] = {}
    for run in runs:
        config, folder, name = str(Path(run) / "config.yaml"), Path(out) / Path(run).name, Path(run).name
        guiders = {(age, weight): _autoguidance(age, width, weight) for age in ages for weight in weights}
        tried = {f"{age} w={w}": settings | {"guidance": each, "seed": seeds} for (age, w), each in guiders.items()}
        scores = evaluate(config, tried, folder / "choice")
        best = min(scores, key=lambda point: scores[point]["fd"])
        chosen = {key: value for key, value in tried[best].items() if key != "seed"}
        points = {"unguided": settings | {"guidance": None}, f"autoguided by {best}": chosen}
        summary = over_seeds(config, points, range(seeds), folder)
        table |= {f"{name}, {point}": values for point, values in summary.items()}
    show(table, ["fd", "fd_change", "precision", "recall"])


def _autoguidance(age: str, width: float, weight: float) -> dict[str, object]:
    """Config of autoguidance by an earlier snapshot."""
    guider = class_config("Snapshot", images=age, sigma_rel=width)
    return class_config("Autoguidance", guider=guider, weight=weight)


if __name__ == "__main__":
    run_script(study)
