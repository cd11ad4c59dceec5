"""Curves against weight and age: drawn values, selected evaluations, and output files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

import callbacks.weight_curves
from callbacks import PostHocEMA, WeightCurves
from callbacks.weight_curves import _point
from lightning_guide.denoiser import Denoiser
from lightning_guide.evaluation import FrechetDistance, RawPixels
from lightning_guide.guidance import SIMS, Autoguidance, ClassifierFreeGuidance, Interval, Neon, Snapshot
from lightning_guide.runs.models import open_snapshots
from tests.runs import TinyImages, evaluation, tiny_module, tiny_trainer

BASE = Snapshot("1/1", 0.05)
GUIDANCES: dict[str, Denoiser] = {
    "sims_8_1.5": SIMS(Snapshot(8, 0.05), 1.5, base=BASE),
    "sims_8_2": SIMS(Snapshot(8, 0.05), 2.0, base=BASE),
    "sims_16_2": SIMS(Snapshot("1/2", 0.05), 2.0, base=BASE),
    "neon_8": Neon(Snapshot(8, 0.05), 1.5),
    "neon_16": Neon(Snapshot(16, 0.05), 1.5),
    "auto": Autoguidance(Snapshot(8, 0.05), 2.0),  # a single point
    "scheduled": SIMS(Snapshot(8, 0.05), Interval(2.0, 0.1, 1.0)),  # type: ignore[arg-type]
    "cfg": ClassifierFreeGuidance(2.0),
}


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Rendered figures."""
    seen: list[Figure] = []
    render = callbacks.output.render

    def recording(figure: Figure) -> Any:
        seen.append(figure)
        return render(figure)

    monkeypatch.setattr(callbacks.weight_curves, "render", recording)
    return seen


def run(folder: Path, guidances: dict[str, Denoiser]) -> dict[str, dict[str, float]]:
    module = tiny_module(
        evaluations={"base": evaluation(BASE)},
        guidances=guidances,
        metrics={"fd": FrechetDistance(RawPixels())},
        average=0.05,
    )
    trainer = tiny_trainer(folder, PostHocEMA(8), WeightCurves(), limit_val_batches=1.0, val_check_interval=8)
    trainer.fit(module, datamodule=TinyImages())
    return module.evaluations.results


def test_curves(tmp_path: Path, figures: list[Figure]) -> None:
    results = run(tmp_path, GUIDANCES)
    (figure,) = figures
    assert [axes.get_title() for axes in figure.axes] == ["SIMS", "SIMS", "Neon", "Neon"]
    lines = [
        {str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}
        for axes in figure.axes
    ]
    fd = {name: values["fd"] for name, values in results.items()}
    assert lines[0]["guider after 8 images"] == ([1.5, 2.0], [fd["sims_8_1.5"], fd["sims_8_2"]])
    assert lines[0]["guider after 16 images"] == ([2.0], [fd["sims_16_2"]])
    assert lines[1]["w = 2"] == ([8, 16], [fd["sims_8_2"], fd["sims_16_2"]])
    assert lines[3]["w = 1.5"] == ([8, 16], [fd["neon_8"], fd["neon_16"]])
    assert all(line["base"][1] == [fd["base"]] * 2 for line in lines)
    assert Image.open(tmp_path / "report/curves_fd.png").width > 600


def test_age_of_a_guider_of_another_run_is_a_fraction_of_that_run(tmp_path: Path) -> None:
    tiny_trainer(tmp_path, PostHocEMA(8), steps=4).fit(tiny_module(average=None), datamodule=TinyImages())
    (last,) = {entry.images for entry in open_snapshots(tmp_path).entries()[-1:]}
    point = _point(SIMS(Snapshot("1/1", 0.05, run=str(tmp_path)), 1.5), 1.0, 4000)
    assert point is not None and point.images == last != 4000
    assert _point(SIMS(Snapshot("1/1", 0.05, run=str(tmp_path / "gone")), 1.5), 1.0, 4000) is None


def test_nothing_is_drawn_without_curves(tmp_path: Path, figures: list[Figure]) -> None:
    run(tmp_path, {"cfg": GUIDANCES["cfg"], "auto": GUIDANCES["auto"]})
    assert not figures and not (tmp_path / "report").exists()
