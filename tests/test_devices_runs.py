"""Runs, predictions, rounds and synthetic sets on the emulated device: the CPU's results, no mixed devices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

import lightning_guide as lg
from callbacks import Gallery, HalfLifeEMA, MetricsReport, PostHocEMA, RunCheckpoint, SampleGrid, SampleWriter
from datamodules import SelfSynthesized
from lightning_guide.cli import main
from lightning_guide.distributions.subspace import Direction, SubspaceGaussian
from lightning_guide.guidance import Autoguidance, Snapshot
from lightning_guide.modules.gradient_fine_tuning import GradientFineTuning
from lightning_guide.modules.gradient_optimization import GradientOptimization
from lightning_guide.objectives import Quadratic
from lightning_guide.optimization import GainTarget, GeometricReplay, Shifted
from lightning_guide.snapshots import SnapshotStore
from lightning_guide.training.losses import EDMLoss
from scripts.lib.emulated_device import DEVICE, EmulatedDevice
from tests import runs
from tests.devices import Options, assert_near, on_both
from tests.runs import SAMPLER, TinyImages, evaluation, full_run, tiny_module, tiny_trainer
from tests.test_modules_gradient import data, sampling

STRATEGY = "scripts.lib.emulated_accelerator.EmulatedStrategy"


def test_resumed_run_has_the_snapshots_and_samples_of_the_cpu(tmp_path: Path) -> None:
    """Averages of both kinds, early snapshots, checkpoints, guided evaluations, figures; resumed from a checkpoint."""

    def work(folder: Path, options: Options) -> Any:
        for steps in (4, 8):
            watching = [HalfLifeEMA(16), SampleGrid(4), Gallery(2), MetricsReport()]
            module = full_run(str(folder), steps=steps, callbacks=watching, **options)
        store = SnapshotStore(folder / "half_life/snapshots")
        averages = {entry.path.name: dict(store.load(entry)[0]) for entry in store.entries()}
        scores = dict(module.evaluations.results)
        figures = {path.name: path.exists() for path in sorted(folder.rglob("*.png"))}
        assert figures and scores and averages
        return {"snapshots": runs.snapshots(folder), "half life": averages, "scores": scores, "figures": figures}

    expected, found = on_both(work, tmp_path)
    assert_near(found, expected)


def test_prediction_writes_the_samples_of_the_cpu(tmp_path: Path) -> None:
    def work(folder: Path, options: Options) -> Tensor:
        guided = evaluation(Autoguidance(Snapshot("1/2", 0.05), 2.0), num_samples=5)
        module = tiny_module(prediction=guided, average=0.05)
        trainer = tiny_trainer(tmp_path, SampleWriter(str(folder), formats=["npz"]), **options)
        trainer.predict(module, datamodule=TinyImages(), return_predictions=False)
        (written,) = folder.rglob("*.npz")
        return torch.from_numpy(np.load(written)["x"]).float()

    full_run(str(tmp_path), steps=4)
    expected, found = on_both(work, tmp_path / "drawn")
    assert len(found) == 5 and (found - expected).abs().max() <= 1


def test_finished_run_samples_on_the_device(search_folder: Path) -> None:
    run, guidance = lg.Run(search_folder / "run"), Autoguidance(Snapshot("1/2", 0.1), 2.0)
    expected = run.sample(guidance, SAMPLER, count=3)
    with EmulatedDevice():
        found = run.sample(guidance, SAMPLER, count=3, device=DEVICE)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-4)


def test_synthetic_set_is_that_of_the_cpu(tmp_path: Path) -> None:
    """Training on samples that the model of another run draws on the device."""
    tiny_trainer(tmp_path, PostHocEMA(16), steps=8).fit(tiny_module(average=None), datamodule=TinyImages())

    def work(folder: Path, options: Options) -> Tensor:
        settings: dict[str, Any] = {"data": TinyImages(), "sampler": SAMPLER, "chunk_size": 4, "num_samples": 10}
        drawn = SelfSynthesized(run=str(tmp_path), folder=str(folder), **settings)
        tiny_trainer(folder / "run", steps=2, **options).fit(tiny_module(average=None), datamodule=drawn)
        return drawn.training().take(torch.arange(10)).x.float()

    expected, found = on_both(work, tmp_path / "sets")
    assert (found - expected).abs().max() <= 1 and found.std() > 20


def test_rounds_of_optimization_are_those_of_the_cpu(tmp_path: Path) -> None:
    def work(folder: Path, options: Options) -> Any:
        chosen: Options = {"num_rounds": 2, "target": GainTarget(0.2)}
        sampled = sampling(samples=6, batch_size=4)
        module = GradientOptimization(SubspaceGaussian(), Quadratic(Direction()), sampled, **chosen)
        trainer = tiny_trainer(folder, limit_test_batches=1.0, **options)
        trainer.test(module, datamodule=data(), verbose=False)
        return {str(i): record for i, record in enumerate(module.rounds.history)}

    expected, found = on_both(work, tmp_path)
    assert_near(found, expected)


def test_fine_tuning_on_own_samples_is_that_of_the_cpu(tmp_path: Path) -> None:
    def work(folder: Path, options: Options) -> Any:
        torch.manual_seed(0)
        module = GradientFineTuning(
            Shifted(SubspaceGaussian()),
            objective=Quadratic(Direction()),
            sampling=sampling(samples=6, batch_size=4),
            target=GainTarget(0.2),
            replay=GeometricReplay(0.5),
            loss=EDMLoss(uncertainty=False),
        )
        trainer = tiny_trainer(folder, RunCheckpoint(1), steps=3, **options)
        trainer.fit(module, datamodule=data())
        history = {str(i): record for i, record in enumerate(module.rounds.history)}
        return history | {name: value.cpu() for name, value in module.denoiser.state_dict().items()}

    expected, found = on_both(work, tmp_path)
    assert_near(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddpm", "sd"])
def test_an_imported_model_predicts_the_samples_of_the_cpu(
    tiny_pipeline: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    strategy = {"trainer": {"accelerator": "auto", "strategy": {"class_path": STRATEGY}}}
    (tmp_path / "device.yaml").write_text(yaml.safe_dump(strategy))

    def work(folder: Path, options: Options) -> Tensor:
        chosen = ["--config", str(tmp_path / "device.yaml")] if options else ["--trainer.accelerator", "cpu"]
        main(["import", "diffusers", str(tiny_pipeline(name)), str(folder), "--num_steps", "2"])
        main(["predict", str(folder), *chosen, "--trainer.logger", "false", "--model.prediction.num_samples", "3"])
        files = sorted(folder.rglob("samples/**/*.png"))
        assert len(files) == 3
        return torch.stack([torch.from_numpy(np.array(Image.open(file))).float() for file in files])

    expected, found = on_both(work, tmp_path)
    assert (found - expected).abs().max() <= 1 and found.std() > 1
