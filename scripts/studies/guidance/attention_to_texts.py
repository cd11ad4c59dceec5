"""NAG and PLADIS at several weights, alone and under CFG, on the same seeds.

python -m scripts.studies.guidance.attention_to_texts configs/digits/captions.yaml --out runs/digits/texts
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scripts.lib.command_line import run_script
from scripts.lib.configs import Solver, class_config, solver
from scripts.lib.evaluations import over_seeds
from scripts.lib.seed_summary import show


def study(
    run_config: str,
    *,
    out: str,
    nag: list[float] = [2, 6, 11],  # noqa: B006
    pladis: list[float] = [2, 3, 5],  # noqa: B006
    cfg: float = 1.5,
    seeds: int = 5,
    num_samples: int = 200,
    sampler: Solver = "DPMSolver2M",
    num_steps: int = 14,
    batch_size: int = 200,
) -> None:
    """Draw samples for all points and print the table.

    Args:
        run_config: config of the finished run.
        out: folder for the results.
        nag: weights of NAG.
        pladis: weights of PLADIS.
        cfg: weight of classifier-free guidance, alone and around both at their first weight.
        seeds: number of sampling seeds.
        num_samples: samples for each point and seed.
        sampler: class of the sampler.
        num_steps: steps of the sampler.
        batch_size: samples in one network call.
    """
    methods = {f"NAG w={weight:g}": class_config("NormalizedAttentionGuidance", weight=weight) for weight in nag}
    methods |= {f"PLADIS w={weight:g}": class_config("PLADIS", weight=weight) for weight in pladis}
    around = {
        "CFG": None,
        "CFG of NAG": methods[f"NAG w={nag[0]:g}"],
        "CFG of PLADIS": methods[f"PLADIS w={pladis[0]:g}"],
    }
    guided = methods | {
        name: class_config("ClassifierFreeGuidance", weight=cfg, positive=each) for name, each in around.items()
    }
    plain: dict[str, Any] = {
        "num_samples": num_samples,
        "batch_size": batch_size,
        "sampler": solver(sampler, num_steps),
    }
    points = {"unguided": plain} | {name: plain | {"guidance": each} for name, each in guided.items()}
    summary = over_seeds(run_config, points, range(seeds), Path(out))
    show(summary, ("class_agreement", "fd", "fd_change", "nfe"))


if __name__ == "__main__":
    run_script(study)
