"""Configs of the runs of the study, and the commands that make them unless they are finished."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodules import Shards
from lightning_guide.cli import main as lightning_guide
from scripts.lib.configs import class_config, solver, write_settings
from scripts.studies.fine_tuning.captions import CHANNELS, LENGTH, PAIR, TARGET, write_captioned, write_prompts

Config = dict[str, Any]

WIDTHS = [0.05, 0.1]


@dataclass(frozen=True)
class Study:
    """Folder, data and sizes of a study.

    Attributes:
        out: folder of everything that is made.
        data: folder of the shards of CIFAR-10, train-*.tar and test-*.tar.
        base_steps: steps of the base model.
        channels: `model_channels` of its network.
        classifier_steps: steps of each of the three classifiers.
        num_samples: samples for each point and seed.
        seeds: number of seeds.
        batch_size: images in a step.
        num_steps: steps of the sampler.
    """

    out: Path
    data: Path
    base_steps: int
    channels: int
    classifier_steps: int
    num_samples: int
    seeds: int
    batch_size: int
    num_steps: int

    def run(self, name: str) -> Path:
        """Folder of a run."""
        return self.out / name

    def fit(self, name: str, settings: Config, *files: str) -> Path:
        """Train the run `name` by the config `files` and `settings` unless it is finished; return its folder."""
        run = self.run(name)
        settings = copy.deepcopy(settings)
        settings["trainer"] = self.trainer(run) | settings.get("trainer", {})
        write_settings(run / "settings.yaml", settings, done=run / "done")
        if not (run / "done").exists():
            configs = [word for file in (*files, str(run / "settings.yaml")) for word in ("-c", file)]
            lightning_guide(["fit", *configs])
            (run / "done").touch()
        return run

    @staticmethod
    def trainer(run: Path) -> Config:
        """Settings of the trainer of all runs: on one CPU, without validation."""
        return {
            "default_root_dir": str(run),
            "accelerator": "cpu",
            "limit_val_batches": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }

    # What the parts share

    def shards(self, name: str) -> Config:
        """Captioned training data of the folder `name`, conditioned on embeddings."""
        folder = self.run(name)
        return class_config(
            "Shards",
            train=str(folder / "train-*.tar"),
            heldout=str(folder / "train-*.tar"),
            num_classes=0,
            size=None,
            token_channels=CHANNELS,
            token_length=LENGTH,
            prompt_file=str(folder / "prompts.npy"),
            flip=True,
            batch_size=self.batch_size,
        )

    def prepare(self, *, large: int, small: int) -> None:
        """Write the captioned shards: all classes, the pair and cats, `large` images of each; `small` of the pair."""
        images: Shards | None = None
        parts = (("ten", range(10), large), ("two", PAIR, large), ("few", PAIR, small), ("cats", [TARGET], large))
        for name, classes, count in parts:
            folder = self.run(name)
            if not (folder / "prompts.json").exists():
                images = images or Shards(f"{self.data}/train-*.tar", f"{self.data}/test-*.tar", num_classes=10, size=8)
                write_captioned(images, folder, classes, per_class=count)
                write_prompts(folder / "prompts", classes)

    def prompts(self, name: str) -> Any:
        """Embeddings of the captions of a folder, (P, L, C)."""
        return np.load(self.run(name) / "prompts.npy")

    def classifier(self, name: str, file: str, shards: str) -> str:
        """Train a classifier by a config of configs/cifar8, on `shards`; return its run."""
        settings = {
            "trainer": {"max_steps": self.classifier_steps},
            "data": {"init_args": {"train": f"{self.data}/{shards}", "heldout": f"{self.data}/test-*.tar"}},
        }
        return str(self.fit(name, settings, f"configs/cifar8/{file}.yaml"))

    def features(self) -> Config:
        """Metrics by the features of a classifier of all classes."""
        run = self.classifier("classifier", "classifier", "train-*.tar")
        extractor = class_config("ClassifierFeatures", run=run)
        kinds = {"fd": "FrechetDistance", "pr": "PrecisionRecall", "agreement": "ClassAccuracy"}
        return {name: class_config(kind, extractor=extractor) for name, kind in kinds.items()}

    def base(self) -> str:
        """Train the base model on all captioned images; return its run."""
        network = class_config(
            "EDM2UNet",
            data_shape=[3, 8, 8],
            token_channels=CHANNELS,
            model_channels=self.channels,
            channel_mult=[1, 2],
            num_blocks=1,
            attention_resolutions=[8, 4],
        )
        images = self.base_steps * self.batch_size
        settings = {
            "trainer": {"max_steps": self.base_steps, "callbacks": averages(images, ["1/4"])},
            "model": {
                "init_args": {
                    "denoiser": {"init_args": {"network": network}},
                    "label_dropout": 0.1,
                    "evaluations": {},
                    "metrics": self.features(),
                }
            },
            "data": self.shards("ten"),
        }
        return str(self.fit("base", settings, "configs/base/edm.yaml"))

    def tuned(
        self, name: str, data: Config, denoiser: Config, *, rate: float, steps: int, early: list[str], seed: int = 0
    ) -> Path:
        """Train `denoiser`, made of the base, for `steps`; return the run."""
        images = steps * self.batch_size
        settings = {
            "trainer": {"max_steps": steps, "callbacks": averages(images, early)},
            "model": {
                "init_args": {
                    "denoiser": denoiser,
                    "learning_rate": class_config("ConstantRate", peak=rate, rampup_images=images / 10),
                    "label_dropout": 0.1,
                    "metrics": self.features(),
                    "evaluations": {},
                    "seed": seed,
                }
            },
            "data": data,
        }
        return self.fit(name, settings, "configs/base/edm.yaml")

    def whole(self) -> Config:
        """All weights of the base."""
        return class_config("lightning_guide.runs.pretrained", run=str(self.run("base")), images=None, sigma_rel=0.05)

    def low_rank(self, rank: int) -> Config:
        """Low-rank additions to the base."""
        return class_config("LowRank", rank=rank, denoiser=self.whole())

    def drawn(self) -> Config:
        """Settings of every evaluation."""
        sampler = solver("DPMSolver2M", self.num_steps)
        return {"num_samples": self.num_samples, "batch_size": 250, "sampler": sampler}


def averages(images: int, early: list[str]) -> list[Config]:
    """Callbacks that keep averages at the end, after `images`, and at fractions of the run."""
    kept = [class_config("PostHocEMA", sigma_rels=WIDTHS, every_images=images)]
    return kept + ([class_config("EarlySnapshots", fractions=early, rebuildable=1)] if early else [])
