"""Commands to be killed: what each needs, its words, its moments, and where its results lie (`COMMANDS`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from lightning_guide.cli import main
from lightning_guide.pretrained.autoencoders import Posterior, VariationalAutoencoder

__all__ = ["COMMANDS", "KilledCommand", "SmallAutoencoder", "prepare"]

BASE, RESULT = "base", "result"  # the finished run that others need, and the folder of the results


@dataclass(frozen=True)
class KilledCommand:
    """A command, run in a folder made by `prepare`, whose results lie in the folder `result` there.

    Attributes:
        words: the command line.
        part: the function, "module:name" or "module:class.name", whose calls are the moments.
        to_the_end: whether the moments reach from its first call to the end of the command.
    """

    words: Sequence[str]
    part: str
    to_the_end: bool = False


class SmallAutoencoder(VariationalAutoencoder):
    """Latents of 2x2 pixels, without weights to download; slow, so that there is time to be killed in."""

    def posterior(self, x: Tensor) -> Posterior:
        """Return the mean of 2x2 pixels and a constant deviation."""
        for _ in range(200):
            mean = 3 * avg_pool2d(x, 2)
        return Posterior(mean, torch.full_like(mean, 0.01))

    def decode(self, z: Tensor) -> Tensor:
        """Enlarge the latents."""
        return interpolate(z / 3, scale_factor=2)


def prepare(folder: Path) -> None:
    """Write configs, images and shards to `folder`, and train the run `base` there."""
    for name, content in {"fit": _FIT, "sims": _SIMS, "search": _SEARCH}.items():
        (folder / f"{name}.yaml").write_text(json.dumps(content))  # which is YAML
    generator = torch.Generator().manual_seed(0)
    for i in range(240):
        path = folder / "images" / f"class-{i % 3}" / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(256, (16, 16, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(path)
    main(["fit", "-c", "fit.yaml", "--trainer.default_root_dir", BASE])
    main(["convert", "images", "shards", "--records_per_shard", "20"])


def _of(path: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": path, "init_args": arguments}


_SAMPLER = _of("Euler", grid=_of("KarrasGrid", num_steps=4))
_AUTO = _of("Autoguidance", weight=2.0, guider=_of("Snapshot", images="1/2", sigma_rel=0.05))
_METRICS = {"fd": _of("FrechetDistance", extractor=_of("RawPixels"))}
_DRAW = {"num_samples": 24, "batch_size": 4, "sampler": _SAMPLER}
_NETWORK = _of("DiffusionTransformer", data_shape=[1, 8, 8], num_classes=10, channels=16, depth=1, heads=2)
_CALLBACKS = [
    _of("PostHocEMA", sigma_rels=[0.05, 0.1], every_images=64),
    _of("EarlySnapshots", fractions=["1/2"]),
    _of("RunCheckpoint", every_steps=4),
    _of("SampleGrid", count=8),
    _of("MetricsReport"),
    _of("RunReport"),
]
_TRAINER = {
    "accelerator": "cpu",
    "max_steps": 24,
    "val_check_interval": 8,
    "limit_val_batches": 1.0,
    "log_every_n_steps": 2,
    "enable_progress_bar": False,
    "callbacks": _CALLBACKS,
}
_FIT: dict[str, Any] = {
    "seed_everything": 0,
    "trainer": _TRAINER,
    "model": _of(
        "DiffusionModule",
        denoiser=_of("Preconditioned", network=_NETWORK),
        loss=_of("EDMLoss"),
        label_dropout=0.1,
        metrics=_METRICS,
        evaluations={"unguided": _DRAW, "auto": _DRAW | {"guidance": _AUTO}},
        prediction=_DRAW | {"num_samples": 120, "guidance": _AUTO},
    ),
    "data": _of("Digits", batch_size=16),
}
_SYNTHETIC = _of(
    "SelfSynthesized",
    data=_of("Digits"),
    run=BASE,
    folder=f"{RESULT}/synthetic",
    num_samples=120,
    chunk_size=5,
    sampler=_SAMPLER,
    guidance=_AUTO,
    batch_size=16,
)
_SIMS = _FIT | {"trainer": _TRAINER | {"max_steps": 4, "limit_val_batches": 0}, "data": _SYNTHETIC}
_SEARCH = {
    "evaluation": {"batch_size": 8, "sampler": _SAMPLER, "guidance": _AUTO},
    "axes": {"weight": {"path": "guidance.init_args.weight", "values": [1.5, 2, 2.5, 3], "prior": 2}},
    "metrics": _METRICS,
    "block": 8,
    "blocks": 4,
    "objectives": {"fd": "lowest"},
}

_SAMPLE = ["predict", BASE, "--trainer.default_root_dir", RESULT]
_ENCODE = ["encode", "shards/train-*.tar", RESULT, "--vae", f"{__name__}.SmallAutoencoder", "--batch_size", "4"]
_TRAIN = ["fit", "-c", "fit.yaml", "--trainer.default_root_dir", RESULT]

COMMANDS: dict[str, KilledCommand] = {
    "training": KilledCommand(_TRAIN, "lightning.pytorch:Trainer.fit", to_the_end=True),
    "snapshot": KilledCommand(_TRAIN, "lightning_guide.snapshots:SnapshotStore.save"),
    "checkpoint": KilledCommand(_TRAIN, "callbacks:RunCheckpoint._save"),
    "validation": KilledCommand(_TRAIN, "lightning.pytorch.loops.evaluation_loop:_EvaluationLoop.run"),
    "predict": KilledCommand(_SAMPLE, "lightning.pytorch:Trainer.predict", to_the_end=True),
    "convert": KilledCommand(
        ["convert", "images", RESULT, "--records_per_shard", "20"],
        "datamodules.commands.convert:write_shards",
        to_the_end=True,
    ),
    "encode": KilledCommand(_ENCODE, "datamodules.commands.encode:shard_paths", to_the_end=True),
    "synthesis": KilledCommand(
        ["fit", "-c", "sims.yaml", "--trainer.default_root_dir", f"{RESULT}/run"],
        "datamodules:SelfSynthesized.setup",
    ),
    "tune": KilledCommand(
        ["tune", BASE, "search.yaml", "--budget", "320", "--out", RESULT],
        "lightning_guide.commands.tune:Tune.run",
        to_the_end=True,
    ),
}
