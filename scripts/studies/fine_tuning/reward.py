"""The reward: rounds of gradient guidance toward a class, whose samples another classifier judges."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datamodules import Shards
from lightning_guide.cli import main as lightning_guide
from lightning_guide.evaluation.features import ClassifierFeatures
from lightning_guide.evaluation.metrics import FrechetDistance
from lightning_guide.noise import KarrasGrid
from lightning_guide.objectives import ClassLogProbability
from lightning_guide.runs import finished_model
from lightning_guide.runs.checkpoints import newest_checkpoint
from lightning_guide.runs.sampling import sample
from lightning_guide.samplers import DPMSolver2M
from lightning_guide.utils.images import from_pixels, to_pixels
from scripts.lib.configs import class_config, write_settings
from scripts.lib.seed_summary import Metrics, summarize
from scripts.studies.fine_tuning.captions import TARGET
from scripts.studies.fine_tuning.settings import Config, Study, averages

Judge = Callable[[Tensor, Tensor], Metrics]
WIDTH = 0.1  # sigma_rel of the average that algorithm 2 draws from


def reward(study: Study, *, steps: int, samples: int, rounds: int, rank: int, rate: float) -> dict[str, Any]:
    """Maximize the guide's log-probability of cats for the prompt of a cat; return the summary by method.

    Guide and judge have different architectures and were trained on different halves of the images. Algorithm 1 guides
    the samples of the base, algorithm 2 trains the model on them; "alone" are unguided samples of the trained model.
    """
    guide = study.classifier("guide", "classifier", "train-*[13579].tar")
    judge = study.classifier("judge", "judge", "train-*[02468].tar")
    base = class_config("Snapshot", run=study.base(), images="1/1", sigma_rel=0.05)
    objective = class_config("ClassLogProbability", run=guide, label=TARGET)
    kinds = {"LoRA": (class_config("LowRank", rank=rank, denoiser=base), rate), "whole": (base, rate / 10)}
    judged, real = _judge(study, guide, judge), _real(study)
    rows: dict[str, list[Metrics]] = {}
    for seed in range(study.seeds):
        drawn = study.drawn() | {"num_samples": samples, "batch_size": samples, "seed": seed, "labels": TARGET}
        shared = {"objective": objective, "sampling": drawn | {"guidance": _look_ahead()}}
        first = _first(study, seed, shared | {"denoiser": base, "num_rounds": rounds})
        prior = first["prior"]
        found = {"base": prior, "algorithm 1": first["samples"]}
        for kind, (denoiser, peak) in kinds.items():
            every = steps // rounds
            run = _second(study, f"reward_{kind}_{seed}", shared | {"denoiser": denoiser}, seed, peak, every, rounds)
            found[f"algorithm 2, {kind}"] = _rounds(newest_checkpoint(run))["samples"]
            found[f"algorithm 2, {kind}, alone"] = _alone(study, run, samples, seed)
        found["real cats"] = real[seed * samples : (seed + 1) * samples]
        for name, x in found.items():
            rows.setdefault(name, []).append(judged(x, prior))
    return {name: summarize(each) for name, each in rows.items()}


def _look_ahead() -> Config:
    strength = class_config("lightning_guide.guidance.PosteriorStrength", noise=0.1)
    return class_config("LookAhead", cap=1.0, strength=strength)


def _first(study: Study, seed: int, arguments: Config) -> dict[str, Tensor]:
    """Run algorithm 1 by its config; return the state of the rounds."""
    run = study.run(f"reward_1_{seed}")
    target = class_config("GoalTarget", goal=0.0)  # a probability of 1
    settings = {
        "trainer": study.trainer(run),
        "model": {"init_args": arguments | {"target": target}},
        "data": study.shards("ten"),
    }
    write_settings(run / "settings.yaml", settings, done=run / "done")
    if not (run / "done").exists():
        lightning_guide(["test", "-c", "configs/gradient/cifar8_reward.yaml", "-c", str(run / "settings.yaml")])
        (run / "done").touch()
    return _rounds(run / "rounds" / "state.ckpt")


def _second(study: Study, name: str, arguments: Config, seed: int, rate: float, every: int, rounds: int) -> Path:
    """Run algorithm 2 with `every` steps after each of `rounds` rounds."""
    images = every * rounds * study.batch_size
    settings = {
        "trainer": {
            "max_steps": every * rounds,
            "callbacks": [*averages(images, []), class_config("RunCheckpoint", every_steps=every * rounds)],
        },
        "model": {
            "class_path": "GradientFineTuning",
            "init_args": arguments
            | {
                "loss": class_config("EDMLoss", noise=class_config("LogNormal", mean=-1.2, std=1.2)),
                "learning_rate": class_config("ConstantRate", peak=rate, rampup_images=images / 10),
                "replay": class_config("GeometricReplay", weight=0.5, pretraining=0.2),
                "target": class_config("GoalTarget", goal=0.0),
                "steps_per_round": every,
                "average": WIDTH,
                "at": "sample",
                "redraw": False,
                "seed": seed,
            },
        },
        "data": study.shards("ten"),
    }
    return study.fit(name, settings)


def _rounds(file: Path | None) -> dict[str, Any]:
    """Read the state of the rounds from the checkpoint of a run."""
    assert file is not None, "a finished run has a checkpoint"
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    rounds: dict[str, Any] = loaded.get("rounds", loaded)  # algorithm 1 has no other state
    return rounds


def _alone(study: Study, run: Path, samples: int, seed: int) -> Tensor:
    """Draw from the trained model alone, from the noise of the rounds."""
    prompts = torch.from_numpy(study.prompts("ten"))[[TARGET] * samples]
    sampler = DPMSolver2M(KarrasGrid(study.num_steps))
    return sample(finished_model(run, None, WIDTH), sampler, prompts=prompts, seed=seed, batch_size=samples)


def _real(study: Study) -> Tensor:
    """Return held-out images of cats, x (n, *)."""
    images = Shards(f"{study.data}/test-*.tar", f"{study.data}/test-*.tar", num_classes=10, size=8).training()
    found = images.take(torch.arange(len(images)))
    assert found.condition is not None
    return from_pixels(found.x[found.condition == TARGET])


def _judge(study: Study, guide: str, judge: str) -> Judge:
    """Return the numbers of samples x (n, *): reward, what the judge says, FD to cats, and distance to `prior`."""
    by_guide, by_judge = ClassLogProbability(guide, TARGET), ClassLogProbability(judge, TARGET)
    distance = FrechetDistance(ClassifierFeatures(study.classifier("classifier", "classifier", "train-*.tar")))
    cats = study.run("cats")
    distance.prepare(Shards(f"{cats}/train-*.tar", f"{cats}/train-*.tar").reference(torch.device("cpu")))

    @torch.no_grad()
    def numbers(x: Tensor, prior: Tensor) -> Metrics:
        pixels = to_pixels(x)
        distance.reset()
        distance.update(pixels, None)
        classes = by_judge.classifier(x).argmax(1)
        return {
            "reward": float(by_guide.value(x).mean()),
            "judge": float(by_judge.value(x).mean()),
            "judge_agrees": float((classes == TARGET).float().mean()),
            "fd": float(distance.compute()["fd"]),
            "distance": float((x - prior).flatten(1).square().sum(1).mean().sqrt()),
        }

    return numbers
