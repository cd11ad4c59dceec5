"""The motion task end to end: a model trained for two steps, guided by every method of configs/motion."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from lightning_guide.cli import main
from lightning_guide.commands.guidance_files import read_guidances
from lightning_guide.evaluation import MotionMetrics
from lightning_guide.objectives import Goal, Obstacle

MOTION = Path(__file__).parent.parent / "configs" / "motion"


@pytest.mark.slow
def test_motion_configs_train_and_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = ["--data.training_size", "32", "--data.heldout_size", "8", "--data.batch_size", "4"]
    train = ["fit", "-c", MOTION / "train.yaml", "-c", MOTION.parent / "shrink.yaml", *data]
    guide = ["test", "-c", "runs/motion/main/config.yaml", "-c", MOTION / "guidance.yaml"]
    few = "model: {init_args: {evaluations: {unguided: {num_samples: 3, sampler: {class_path: lightning_guide.samplers."
    few += "Euler, init_args: {grid: {class_path: lightning_guide.noise.KarrasGrid, init_args: {num_steps: 2}}}}}}}}"
    Path("few.yaml").write_text(few)
    for words in (train, [*guide, "-c", "few.yaml"]):
        monkeypatch.setattr(sys, "argv", ["lightning-guide", *map(str, words)])
        main()
    found = json.loads(Path("runs/motion/main/report/metrics.json").read_text())
    assert set(found) == {"unguided", *read_guidances([str(MOTION / "guidance.yaml")])}
    assert all({"target", "obstacle", "hits"} <= set(each) and each["samples"] == 3 for each in found.values())
    assert len({round(each["target"], 3) for each in found.values()}) >= 4  # the methods differ, even untrained
    image = Image.open("runs/motion/main/report/paths.png").convert("L")
    assert len(image.getcolors()) > 10


def test_metrics_are_means_over_all_paths() -> None:
    goal, obstacle = Goal([3.0, 0.0]), Obstacle([1.5, 0.0], 0.5)
    x = torch.linspace(0.5, 3, 6)
    straight, around = torch.stack([x, 0 * x]), torch.stack([x, 1.0 - (x == 3.0).float()])
    metric = MotionMetrics(goal, obstacle)
    with pytest.raises(ValueError, match="has no samples"), pytest.warns(UserWarning, match="before the ``update``"):
        metric.compute()
    metric.update(straight[None])
    metric.update(torch.stack([around, around + 1]))
    found = {name: float(value) for name, value in metric.compute().items()}
    # (1, 0) lies on the edge of the obstacle, (2, 0) too, (1.5, 0) inside
    assert found["target"] == pytest.approx((0 + 0 + 2) / 3) and found["hits"] == pytest.approx(1 / 3)
    assert found["obstacle"] == pytest.approx((50 + 100 + 50) / 6 / 3, rel=1e-4)
