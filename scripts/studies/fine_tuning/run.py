"""Fine-tuning of a small model of photographs: rates and ranks, guiders of a LoRA, SIMS by LoRA, and a reward.

    python -m scripts.studies.fine_tuning.run data/cifar10 --out runs/fine_tuning

A model of CIFAR-10 at 8x8, conditioned on embeddings of captions, is fine-tuned on a few captioned images of two
classes. Parts: `rates`, LoRA of several ranks and rates and all weights, `guiders`, a LoRA alone and guided, `sims`,
auxiliaries by LoRA and whole, and `reward`, rounds of gradient guidance with a judge. Finished runs are not repeated;
each part writes `PART.json` and prints its table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from scripts.lib.command_line import run_script
from scripts.lib.configs import class_config
from scripts.lib.evaluations import evaluate, over_seeds
from scripts.lib.seed_summary import Metrics, show, summarize
from scripts.studies.fine_tuning.reward import reward
from scripts.studies.fine_tuning.settings import Config, Study

Part = Literal["rates", "guiders", "sims", "reward"]
Chosen = tuple[int, float]  # rank and rate

METRICS = ["fd", "fd_change", "precision", "recall", "class_agreement"]
TUNING = 1000  # seed on which weights are chosen


def study(
    data: str,
    *,
    out: str,
    parts: list[Part] = ["rates", "guiders", "sims", "reward"],  # noqa: B006
    base_steps: int = 1000,
    channels: int = 16,
    classifier_steps: int = 1000,
    large: int = 1000,
    small: int = 500,
    steps: int = 100,
    ranks: list[int] = [2, 8],  # noqa: B006
    rates: list[float] = [0.003, 0.01, 0.03],  # noqa: B006
    whole_rates: list[float] = [0.001, 0.003, 0.01],  # noqa: B006
    rank: int = 4,
    rate: float = 0.01,
    weights: list[float] = [1.5, 2.5, 4.0],  # noqa: B006
    synthetic: int = 500,
    sims_steps: int = 40,
    reward_steps: int = 60,
    reward_samples: int = 60,
    rounds: int = 6,
    num_samples: int = 400,
    seeds: int = 5,
    batch_size: int = 64,
    num_steps: int = 10,
) -> None:
    """Train the base, then run the parts.

    Args:
        data: folder of the shards of CIFAR-10, train-*.tar and test-*.tar.
        out: folder for runs and results.
        parts: parts to run.
        base_steps: steps of the base model.
        channels: `model_channels` of its network.
        classifier_steps: steps of the classifiers: features of the metrics, guide and judge of the reward.
        large: images of each class for training the base, and for reference.
        small: images of each of the two classes for fine-tuning.
        steps: steps of fine-tuning.
        ranks: ranks of the LoRAs.
        rates: their learning rates.
        whole_rates: learning rates of all weights.
        rank: rank of the auxiliaries of SIMS and of the LoRA of the reward.
        rate: their learning rate; all weights get a tenth of it.
        weights: guidance weights.
        synthetic: n_s of SIMS, samples of the base in each set.
        sims_steps: steps of each auxiliary.
        reward_steps: steps of fine-tuning toward the reward.
        reward_samples: samples in each of its rounds.
        rounds: number of its rounds.
        num_samples: samples for each point and seed.
        seeds: number of seeds; weights are chosen on another one.
        batch_size: images in a step.
        num_steps: steps of the sampler, DPM-Solver++(2M).
    """
    made = Study(
        Path(out),
        Path(data),
        base_steps=base_steps,
        channels=channels,
        classifier_steps=classifier_steps,
        num_samples=num_samples,
        seeds=seeds,
        batch_size=batch_size,
        num_steps=num_steps,
    )
    made.prepare(large=large, small=small)
    made.base()
    for part in parts:
        if part == "rates":
            _rates(made, steps, ranks, rates, whole_rates)
        elif part == "guiders":
            _guiders(made, steps, *_best(made), weights)
        elif part == "sims":
            _sims(made, sims_steps, synthetic, rank, rate, weights)
        else:
            summary = reward(made, steps=reward_steps, samples=reward_samples, rounds=rounds, rank=rank, rate=rate)
            _finish(made, "reward", summary, ["reward", "judge", "judge_agrees", "fd", "distance"])


def _rates(study: Study, steps: int, ranks: list[int], rates: list[float], whole_rates: list[float]) -> None:
    """Fine-tune on the few images by every rank and rate, and compare with the base."""
    each: dict[str, list[Metrics]] = {}
    for rank in [*ranks, 0]:
        for rate in rates if rank else whole_rates:
            run = _tuned(study, rank, rate, steps)
            points = {run.name: None} if each else {"base": class_config("Unadapted"), run.name: None}
            drawn = {
                f"{name} seed={seed}": study.drawn() | {"guidance": point, "seed": seed}
                for name, point in points.items()
                for seed in range(TUNING, TUNING + study.seeds)
            }
            found = evaluate(_on_all(study, run), drawn, run / "rates")
            for name, values in found.items():
                each.setdefault(name.split(" ")[0], []).append(values)
    _finish(study, "rates", _paired(each, "base"), METRICS)


def _paired(each: dict[str, list[Metrics]], plain: str) -> dict[str, Any]:
    """Return the summary of every point over seeds, with the change of FD against the point `plain`."""
    for found in each.values():
        for values, base in zip(found, each[plain], strict=True):
            values["fd_change"] = values["fd"] / base["fd"] - 1
    return {name: summarize(found) for name, found in each.items()}


def _best(study: Study) -> Chosen:
    """Return rank and rate of the LoRA of lowest FD.

    Raises:
        SystemExit: if the part `rates` was not run.
    """
    file = study.out / "rates.json"
    if not file.exists():
        raise SystemExit(f"{file} is missing; run the part `rates` first")
    table = json.loads(file.read_text())
    name = min((each for each in table if each.startswith("lora_")), key=lambda each: table[each]["fd"]["mean"])
    _, rank, rate = name.split("_")
    return int(rank), float(rate)


def _guiders(study: Study, steps: int, rank: int, rate: float, weights: list[float]) -> None:
    """Compare the LoRA alone with autoguidance by its early snapshot, by the base, and by an early base."""
    run = _tuned(study, rank, rate, steps)
    guiders = {
        "early LoRA": class_config("Snapshot", images="1/4", sigma_rel=0.1),
        "base": class_config("Unadapted"),
        "early base": class_config("Snapshot", run=study.base(), images="1/4", sigma_rel=0.1),
    }
    kinds = {
        name: {w: class_config("Autoguidance", guider=guider, weight=w) for w in weights}
        for name, guider in guiders.items()
    }
    points: Config = {"unguided": None, "base": class_config("Unadapted")}
    points |= _best_weights(study, _on_all(study, run), kinds, run / "choice")
    seeds = range(study.seeds)
    summary = over_seeds(_on_all(study, run), _drawn(study, _fixed(points)), seeds, run / "guiders")
    _finish(study, "guiders", summary, METRICS)


def _sims(study: Study, steps: int, synthetic: int, rank: int, rate: float, weights: list[float]) -> None:
    """Compare the base with SIMS by auxiliaries of equal steps: LoRA and all weights, on the same synthetic sets."""
    base = class_config("Snapshot", run=study.base(), images="1/1", sigma_rel=0.05)
    results: dict[str, list[Metrics]] = {}
    chosen: Config = {}
    for seed in range(study.seeds):
        data = class_config(
            "SelfSynthesized",
            data=study.shards("ten"),
            run=study.base(),
            folder=str(study.run(f"synthetic_{seed}")),
            num_samples=synthetic,
            sampler=study.drawn()["sampler"],
            sampling_seed=seed,
            batch_size=study.batch_size,
            seed=seed,
        )
        made = {"LoRA": (study.low_rank(rank), rate), "whole": (study.whole(), rate / 10)}
        auxiliaries = {
            name: study.tuned(f"sims_{name}_{seed}", data, each, rate=peak, steps=steps, early=[], seed=seed)
            for name, (each, peak) in made.items()
        }
        snapshots = {
            name: class_config("Snapshot", run=str(run), images="1/1", sigma_rel=0.05)
            for name, run in auxiliaries.items()
        }
        config = str(study.run("base") / "config.yaml")
        if not chosen:
            kinds = {name: {w: _by_sims(base, each, w) for w in weights} for name, each in snapshots.items()}
            chosen = _best_weights(study, config, kinds, study.run("sims_choice"))
            picked = {name.split(" w=")[0]: float(name.split(" w=")[1]) for name in chosen}
        points: Config = {"base": base}
        points |= {f"{name} w={picked[name]}": _by_sims(base, each, picked[name]) for name, each in snapshots.items()}
        drawn = {name: point | {"seed": seed} for name, point in _drawn(study, _fixed(points)).items()}
        for name, values in evaluate(config, drawn, study.run(f"sims_results_{seed}")).items():
            results.setdefault(name, []).append(values)
    _finish(study, "sims", _paired(results, "base"), METRICS)


def _by_sims(base: Config, auxiliary: Config, weight: float) -> Config:
    return class_config("SIMS", base=base, auxiliary=auxiliary, weight=weight)


def _tuned(study: Study, rank: int, rate: float, steps: int) -> Path:
    """Return the run that is fine-tuned on the few images by additions of `rank`, of all weights if it is 0."""
    name = f"lora_{rank}_{rate:g}" if rank else f"whole_{rate:g}"
    denoiser = study.low_rank(rank) if rank else study.whole()
    return study.tuned(name, study.shards("few"), denoiser, rate=rate, steps=steps, early=["1/4"])


def _on_all(study: Study, run: Path) -> str:
    """Write a config that evaluates `run` against all images of its classes; return its path."""
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["data"] = study.shards("two")
    path = run / "on_all.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return str(path)


def _fixed(guidances: Mapping[str, Config | None]) -> dict[str, Config]:
    return {name: {"guidance": each} for name, each in guidances.items()}


def _drawn(study: Study, points: Mapping[str, Config]) -> dict[str, Config]:
    return {name: study.drawn() | point for name, point in points.items()}


def _best_weights(
    study: Study, config: str, kinds: Mapping[str, Mapping[float, Config]], folder: Path
) -> dict[str, Config]:
    """Return the guidance of each kind with the weight of lowest FD on a seed of its own, named by both."""
    tried = {f"{name} w={w}": each for name, weights in kinds.items() for w, each in weights.items()}
    drawn = {name: point | {"seed": TUNING} for name, point in _drawn(study, _fixed(tried)).items()}
    scores = evaluate(config, drawn, folder)
    best = [min((f"{name} w={w}" for w in kinds[name]), key=lambda each: scores[each]["fd"]) for name in kinds]
    return {name: tried[name] for name in best}


def _finish(study: Study, part: str, summary: dict[str, Any], metrics: list[str]) -> None:
    (study.out / f"{part}.json").write_text(json.dumps(summary, indent=1))
    print(part)
    show(summary, metrics)


if __name__ == "__main__":
    run_script(study)
