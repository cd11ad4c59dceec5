"""Figures and further callbacks on the emulated device: the CPU's numbers, no mixed devices, waits with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from callbacks import (
    AccumulatedGradients,
    BudgetSnapshots,
    GradientCosines,
    LossCurves,
    MotionFigure,
    PostHocEMA,
    RoundStrips,
    WeightCurves,
)
from callbacks.fractal2d import rows as fractal_rows
from callbacks.fractal2d.figure import FractalFigure
from datamodules.motion import Trajectories
from datamodules.points import Points
from lightning_guide.denoiser import Denoiser
from lightning_guide.evaluation import DensityMetrics, FrechetDistance, MotionMetrics, RawPixels
from lightning_guide.evaluation.metrics import exact_density
from lightning_guide.guidance import SIMS, ClassifierFreeGuidance, LookAhead, Neon, Snapshot, Tilt, Unconditional
from lightning_guide.guidance.training_free import DPS, AddedNoise, Augmented, ClassifierGuidance, Probe
from lightning_guide.modules.gradient_optimization import GradientOptimization
from lightning_guide.objectives import ClassLabel, Goal, Obstacle, TorchFunction
from lightning_guide.runs.models import open_snapshots
from tests import runs
from tests.devices import Options, assert_near, on_both
from tests.runs import TinyImages, TinyNetwork, evaluation, tiny_module, tiny_trainer
from tests.test_callbacks_diagnostics import LinearClassifier
from tests.test_callbacks_fractal2d import CLOSE_UP, CURVES, PANELS, TREE
from tests.test_callbacks_fractal2d import evaluations as points_evaluations
from tests.test_callbacks_fractal2d import module as points_module
from tests.test_callbacks_round_strips import Gray


def pixels(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path).convert("L"))).float()


def test_diagnostics_and_budgets_are_those_of_the_cpu(tmp_path: Path) -> None:
    """Numbers of each diagnostic, of untrained networks and after some steps; averages stored at budgets."""

    def work(folder: Path, options: Options) -> Any:
        judge, guide = ClassLabel(LinearClassifier(1)), ClassLabel(LinearClassifier(0))
        guidances: dict[str, Denoiser] = {
            "dps": DPS(guide, 0.3, positive=Unconditional()),
            "classifier": ClassifierGuidance(LinearClassifier(0), positive=Unconditional()),
        }
        probes = {"plain": Probe([guide]), "noise": Probe([guide], Augmented([AddedNoise(0.5)], 4))}
        drawers = [
            LossCurves(judge, count=4),
            GradientCosines("unguided", count=4),
            AccumulatedGradients(probes, judge, labels=[0, 1, 2], steps=6),
            BudgetSnapshots([4]),
        ]
        module = tiny_module(evaluations={"unguided": evaluation()}, guidances=guidances, average=0.05)
        options = {"limit_val_batches": 1.0, "val_check_interval": 2, "steps": 2} | options
        tiny_trainer(folder, PostHocEMA(1000), *drawers, **options).fit(module, datamodule=TinyImages())
        found = {path.stem: json.loads(path.read_text()) for path in (folder / "report").glob("*.json")}
        assert len(found) == 3
        stored = [entry.images for entry in open_snapshots(folder).entries()]
        return {"numbers": found, "images": stored, "snapshots": runs.snapshots(folder)}

    expected, found = on_both(work, tmp_path)
    assert_near(found, expected)
    assert found["images"][0] == 4


@pytest.mark.slow
def test_weight_curves_are_those_of_the_cpu(tmp_path: Path) -> None:
    base = Snapshot("1/1", 0.05)
    guidances: dict[str, Denoiser] = {
        "sims_8_1.5": SIMS(Snapshot(8, 0.05), 1.5, base=base),
        "sims_8_2": SIMS(Snapshot(8, 0.05), 2.0, base=base),
        "neon_8": Neon(Snapshot(8, 0.05), 1.5),
        "neon_16": Neon(Snapshot(16, 0.05), 1.5),
        "cfg": ClassifierFreeGuidance(2.0),
    }

    def work(folder: Path, options: Options) -> Any:
        chosen: Options = {"guidances": guidances, "metrics": {"fd": FrechetDistance(RawPixels())}, "average": 0.05}
        module = tiny_module(evaluations={"base": evaluation(base)}, **chosen)
        options = {"limit_val_batches": 1.0, "val_check_interval": 4, "steps": 4} | options
        tiny_trainer(folder, PostHocEMA(8), WeightCurves(), **options).fit(module, datamodule=TinyImages())
        assert Image.open(folder / "report/curves_fd.png").width > 600
        return module.evaluations.results

    expected, found = on_both(work, tmp_path)
    assert len(found) == 6
    assert_near(found, {name: values | {"seconds": 0} for name, values in expected.items()})


def test_round_strips_are_those_of_the_cpu(tmp_path: Path) -> None:
    def work(folder: Path, options: Options) -> Any:
        sampling = evaluation(LookAhead(Tilt(80.0)), num_samples=4)
        brighter = TorchFunction("torch.mean", {"dim": [1, 2, 3]})
        module = GradientOptimization(Gray(), brighter, sampling, num_rounds=3, at="sample", redraw=False)
        trainer = tiny_trainer(folder, RoundStrips(columns=3), limit_test_batches=1.0, **options)
        trainer.test(module, datamodule=TinyImages(shape=(1, 4, 4)), verbose=False)
        return pixels(folder / "report/rounds.png")

    expected, found = on_both(work, tmp_path)
    assert found.std() > 1 and (found - expected).abs().max() <= 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*samples are not finite")  # an untrained network
def test_the_fractal_figure_is_that_of_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fractal_rows, "WIDE", 60)
    monkeypatch.setattr(fractal_rows, "CLOSE", 40)
    monkeypatch.setattr(exact_density, "TRUE_SAMPLES", 2**14)

    def work(folder: Path, options: Options) -> Any:
        torch.manual_seed(0)
        figure = FractalFigure(TREE, PANELS, CURVES, close_up=CLOSE_UP, count=20)
        module = points_module(points_evaluations(), density=DensityMetrics(TREE))
        tiny_trainer(folder, figure, **options).test(module, datamodule=Points(TREE), verbose=False)
        assert not module.evaluations.failed
        return {"pixels": pixels(folder / "report/figure.png"), "results": module.evaluations.results}

    expected, found = on_both(work, tmp_path)
    assert_near(found["results"], expected["results"])
    assert (found["pixels"] - expected["pixels"]).abs().mean() < 0.5 < found["pixels"].std()


def test_the_motion_figure_is_that_of_the_cpu(tmp_path: Path) -> None:
    def work(folder: Path, options: Options) -> Any:
        goal, obstacle = Goal([1.0, 0.0]), Obstacle([0.5, 0.0], 0.2)
        torch.manual_seed(0)
        data = Trajectories(frames=8, training_size=16, heldout_size=8, batch_size=4)
        metrics = {"motion": MotionMetrics(goal, obstacle)}
        module = tiny_module(TinyNetwork((2, 8), 4), evaluations={"plain": evaluation()}, metrics=metrics, average=None)
        trainer = tiny_trainer(folder, MotionFigure(goal, obstacle), limit_val_batches=1.0, **options)
        trainer.validate(module, datamodule=data, verbose=False)
        assert not module.evaluations.failed
        return {"pixels": pixels(folder / "report/paths.png"), "results": module.evaluations.results}

    expected, found = on_both(work, tmp_path)
    assert_near(found["results"], expected["results"])
    assert (found["pixels"] - expected["pixels"]).abs().mean() < 0.5 < found["pixels"].std()
