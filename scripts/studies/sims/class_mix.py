"""Class shares of samples under SIMS: requested shares against those found by a classifier.

    python -m scripts.studies.sims.class_mix configs/sims/digits.yaml --out runs/digits/class_mix

Samples are drawn without labels, so that the model alone decides their classes. The shares a of the base are measured;
the synthetic set, drawn with labels, gets the mix b ~ a (a / q)^(1 / omega) for the target shares q; the auxiliary is
trained on it with most labels dropped. Then the base is guided away from it. Writes `shares.json` and `shares.png`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from datamodules.class_mix import mix_against
from lightning_guide.cli import main as lightning_guide
from lightning_guide.runs.models import open_snapshots
from lightning_guide.utils.files import read_yaml
from scripts.lib.command_line import run_script
from scripts.lib.configs import Solver, class_config, solver, write_settings
from scripts.lib.evaluations import evaluate


def study(
    run_config: str,
    *,
    out: str,
    target: list[float] = [3.0] * 5 + [1.0] * 5,  # noqa: B006
    omega: float = 1.0,
    weights: list[float] = [1.5, 2.0, 3.0],  # noqa: B006
    budget: int = 7680,
    synthetic: int = 1000,
    num_samples: int = 500,
    sampler: Solver = "DPMSolver2M",
    num_steps: int = 14,
    batch_size: int = 250,
    seed: int = 0,
) -> None:
    """Train one auxiliary and measure.

    Args:
        run_config: config of the auxiliary, such as configs/sims/digits.yaml.
        out: folder for the run and results.
        target: target shares of the classes, up to a factor.
        omega: strength for which the mix of the synthetic set is chosen.
        weights: w = 1 + omega' for which shares are measured.
        budget: training of the auxiliary in images.
        synthetic: n_s, samples in the synthetic set.
        num_samples: samples for each point; the standard error of a share of 0.1 is 0.013 for 500.
        sampler: class of the sampler.
        num_steps: steps of the sampler.
        batch_size: samples in one network call.
        seed: seed of the auxiliary and the samples.
    """
    folder = Path(out)
    settings = read_yaml(run_config)
    arguments = settings["model"]["init_args"]
    run = arguments["denoiser"]["init_args"]["run"]
    base = class_config("Snapshot", run=run, images="1/1", sigma_rel=0.05)
    shares = class_config("ClassShares", extractor=arguments["metrics"]["fd"]["init_args"]["extractor"])
    metrics = {"shares": shares, "fd": arguments["metrics"]["fd"]}
    drawn: dict[str, Any] = {"num_samples": num_samples, "batch_size": batch_size, "labels": -1, "metrics": metrics}
    drawn |= {"sampler": solver(sampler, num_steps), "seed": seed}
    plain = evaluate(f"{run}/config.yaml", {"base": drawn | {"guidance": base}}, folder / "base")["base"]
    # one more sample in each class: a class without samples would make the mix infinite
    a = [(plain[f"share_{c}"] * num_samples + 1) / (num_samples + len(target)) for c in range(len(target))]
    mix = mix_against(target, a, omega=omega)
    _fit(run_config, folder, mix, budget, synthetic, drawn["sampler"], seed, settings)
    auxiliary = class_config("Snapshot", images=budget, sigma_rel=0.05)
    guided = {f"w={w:g}": class_config("SIMS", auxiliary=auxiliary, base=base, weight=w) for w in weights}
    points = {name: drawn | {"guidance": each} for name, each in (guided | {"auxiliary": auxiliary}).items()}
    found = {"base": plain} | evaluate(str(folder / "auxiliary/config.yaml"), points, folder / "guided")
    total = sum(target)
    rows = {"requested": [q / total for q in target], "synthetic set": mix}
    rows |= {name: [values[f"share_{c}"] for c in range(len(target))] for name, values in found.items()}
    for name, values in rows.items():
        fd = f"FD {found[name]['fd']:.2f}" if name in found else ""
        print(f"{name:14}", " ".join(f"{value:.3f}" for value in values), fd)
    record = {"shares": rows, "fd": {name: values["fd"] for name, values in found.items()}}
    (folder / "shares.json").write_text(json.dumps(record, indent=1))
    _draw(rows, folder / "shares.png", f"{num_samples} samples, mix chosen for w = {1 + omega:g}")


def _fit(
    run_config: str,
    folder: Path,
    mix: list[float],
    budget: int,
    synthetic: int,
    drawn_by: dict[str, Any],
    seed: int,
    settings: dict[str, Any],
) -> None:
    """Train the auxiliary on a synthetic set of the given mix, with most labels dropped."""
    run = folder / "auxiliary"
    averages = class_config("callbacks.PostHocEMA", sigma_rels=[0.05], every_images=budget)
    steps = budget // settings["data"]["init_args"]["batch_size"]
    data = {"folder": str(folder / "synthetic"), "num_samples": synthetic, "classes": mix, "sampler": drawn_by}
    overlay = {
        "trainer": {
            "default_root_dir": str(run),
            "max_steps": steps,
            "limit_val_batches": 0,
            "enable_progress_bar": False,
            "callbacks": [averages],
        },
        "model": {"init_args": {"seed": seed, "label_dropout": 0.9}},
        "data": {"init_args": data | {"sampling_seed": seed, "seed": seed}},
    }
    write_settings(run / "overlay.yaml", overlay, done=run / "done")
    if not (run / "done").exists():
        lightning_guide(["fit", "-c", run_config, "-c", str(run / "overlay.yaml")])
        if open_snapshots(run).entries()[-1].images < steps * settings["data"]["init_args"]["batch_size"]:
            raise SystemExit(f"{run} was stopped; run the same command to continue")
        (run / "done").touch()


def _draw(rows: dict[str, list[float]], path: Path, title: str) -> None:
    """Draw shares by class, a line for each row."""
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, values in rows.items():
        style = {"color": "black", "linestyle": ":"} if name == "requested" else {"marker": "o", "markersize": 4}
        axis.plot(range(len(values)), values, label=name, **style)
    axis.set(title=title, xlabel="class", ylabel="share", xticks=range(len(next(iter(rows.values())))), ylim=(0, None))
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    run_script(study)
