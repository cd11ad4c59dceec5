"""The 2D figure: parts against closed forms, panels against the evaluations, and errors of invalid settings."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import PostHocEMA
from callbacks.fractal2d import figure as fractal_figure
from callbacks.fractal2d import rows as fractal_rows
from callbacks.fractal2d.density import DensityMap, ReferenceDensity, ViewWindow
from callbacks.fractal2d.figure import FractalFigure
from callbacks.fractal2d.rows import ZoomWindow, start_points, trajectories
from datamodules.points import Points
from lightning_guide.distributions.fractal import FractalTree
from lightning_guide.distributions.gaussian_mixture import GaussianMixture, gaussian
from lightning_guide.evaluation.evaluation import Evaluation
from lightning_guide.evaluation.metrics.exact_density import DensityMetrics
from lightning_guide.guidance import Autoguidance, CosineWeight, Guided, Interval, ScoreScaling, Snapshot
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.networks.log_density_mlp import LogDensityMLP
from lightning_guide.noise import KarrasGrid
from lightning_guide.samplers import Heun
from lightning_guide.training.losses import ScoreMatchingLoss

TREE = FractalTree(depth=3)
NORMAL = gaussian([0.0, 0.0], [[0.04, 0.0], [0.0, 0.04]])
SAMPLER = Heun(KarrasGrid(4, sigma_max=5.0))
PANELS = {"plain": "unguided", "double": "ag_2"}
CURVES = {"young": "ag_*", "scaled": "scale*"}
CLOSE_UP = ZoomWindow(guided="ag_2", center=(0.3, 0.3), candidates=400, steps=4)


def evaluations(**guided: Any) -> dict[str, Evaluation]:
    common: dict[str, Any] = {"sampler": SAMPLER, "num_samples": 30}
    guider = LogDensityMLP(width=4)
    guidances = {
        "ag_1.5": Autoguidance(guider, 1.5),
        "ag_2": Autoguidance(guider, 2.0),
        "ag_3": Autoguidance(guider, Interval(3.0, 0.0, 1.0)),
        "scale": ScoreScaling(1.4),
    }
    named = {name: Evaluation(guidance, **common) for name, guidance in (guidances | guided).items()}
    return {"unguided": Evaluation(**common)} | named


def module(named: dict[str, Evaluation], denoiser: Any = None, **metrics: Any) -> DiffusionModule:
    if denoiser is None:
        denoiser = LogDensityMLP(width=8)
        denoiser.gain.data.fill_(0.5)
    few = Evaluation(sampler=SAMPLER, num_samples=4)
    return DiffusionModule(
        denoiser, ScoreMatchingLoss(), evaluations=named, prediction=few, metrics=metrics, average=None
    )


def trainer(folder: Path, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        default_root_dir=str(folder),
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **({"logger": False} | options),
    )


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Figure]]:
    """Reduce the resolution of density maps, and return the drawn figures."""
    drawn: list[Figure] = []
    render = fractal_figure.render

    def remember(figure: Figure) -> Any:
        drawn.append(figure)
        figure.set_dpi(40)
        return render(figure)

    monkeypatch.setattr(fractal_figure, "render", remember)
    monkeypatch.setattr(fractal_rows, "WIDE", 60)
    monkeypatch.setattr(fractal_rows, "CLOSE", 40)
    yield drawn


@pytest.mark.filterwarnings("ignore:.*samples are not finite")  # an untrained network
def test_figure_of_a_test_run(tmp_path: Path, coarse: list[Figure]) -> None:
    figure = FractalFigure(TREE, PANELS, CURVES, close_up=CLOSE_UP, count=20)
    run = trainer(tmp_path, figure, logger=TensorBoardLogger(str(tmp_path), name="", version="events"))
    trained = module(evaluations(), density=DensityMetrics(TREE))
    run.test(trained, Points(TREE), verbose=False)
    written = np.array(Image.open(tmp_path / "report" / "figure.png"))
    assert written.shape == (15 * 40, 22 * 40, 3)
    log = EventAccumulator(str(tmp_path / "events"))
    log.Reload()
    assert len(log.Images("report/figure")) == 1

    rows = [subfigure.axes for subfigure in coarse[0].subfigs]
    assert [len(row) for row in rows] == [3, 5, 3]
    results = trained.evaluations.results
    titles = [axes.get_title() for axes in rows[0]]
    assert titles[0].startswith("truth\n20 samples") and titles[1].startswith("plain\noutliers ")
    assert f"outliers {100 * results['ag_2']['outliers']:.1f} %" in titles[2]
    assert f"TV {results['ag_2']['total_variation']:.3f}" in titles[2]
    assert [len(axes.collections[-1].get_offsets()) for axes in rows[0]] == [20, 20, 20]  # type: ignore[arg-type]

    lines = [c for axes in rows[1][:2] for c in axes.collections if isinstance(c, LineCollection)]
    ways = [np.stack(collection.get_segments()) for collection in lines]
    assert len(ways) == 2 and ways[0].shape == ways[1].shape and ways[0].shape[1] == 5
    assert (ways[0][:, 0] == ways[1][:, 0]).all() and (ways[0][:, -1] != ways[1][:, -1]).any()
    assert "% of" in rows[1][0].get_title() and "main model" in rows[1][2].get_title()

    curves = {line.get_label(): line.get_xydata() for line in rows[2][0].lines}
    expected = [("unguided", 1.0), ("ag_1.5", 1.5), ("ag_2", 2.0), ("ag_3", 3.0)]
    outliers = [[weight, 100 * results[name]["outliers"]] for name, weight in expected]
    assert np.allclose(np.asarray(curves["young"]), outliers)
    assert np.allclose(np.asarray(curves["scaled"])[:, 0], [1.0, 1.4])
    assert [axes.get_ylabel() for axes in rows[2]] == ["outliers (%)", "lost mass (%)", "total variation"]
    colors = {line.get_label(): line.get_color() for line in rows[2][0].lines}
    assert colors["young"] != colors["scaled"]


@pytest.mark.filterwarnings("ignore:.*it will be skipped")
@pytest.mark.filterwarnings("ignore:.*samples are not finite")  # an untrained network
def test_no_figure_before_the_guider_is_stored(tmp_path: Path, coarse: list[Figure]) -> None:
    named = evaluations(ag_2=Autoguidance(Snapshot(1000), 2.0))  # of a longer run
    run = trainer(tmp_path, PostHocEMA(8), FractalFigure(TREE, PANELS, CURVES, close_up=CLOSE_UP), max_steps=1)
    options = {"batch_size": 8, "heldout_size": 8}
    run.fit(module(named), Points(TREE, **options))
    assert not coarse and not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"panels": {"x": "cfg"}}, "the evaluation 'cfg', which does not exist; there are unguided, ag_1.5"),
        ({"curves": {"cfg": "cfg_*"}}, r"'cfg_\*' of the curve 'cfg' matches no evaluation; there are unguided"),
        ({"close_up": ZoomWindow(guided="unguided")}, "evaluation 'unguided' of the close-up has no guider"),
        ({"close_up": ZoomWindow(guided="nothing")}, "the evaluation 'nothing', which does not exist"),
    ],
)
def test_missing_evaluations_are_rejected(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    complete: dict[str, Any] = {"panels": PANELS, "curves": CURVES, "close_up": CLOSE_UP} | arguments
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, FractalFigure(TREE, **complete)).test(module(evaluations()), Points(TREE), verbose=False)


def test_model_and_distribution_without_density_are_rejected(tmp_path: Path) -> None:
    figure = FractalFigure(TREE, PANELS, CURVES, close_up=CLOSE_UP)
    blind = module(evaluations(), ScoreScaling(positive=LogDensityMLP(width=4)))
    with pytest.raises(ValueError, match="a ScoreScaling has none; expected a denoiser with log_density"):
        trainer(tmp_path, figure).test(blind, Points(TREE), verbose=False)
    with pytest.raises(ValueError, match="is a LogDensityMLP without sample; expected for example"):
        FractalFigure(LogDensityMLP(width=4), PANELS, CURVES)


def test_prediction_needs_no_evaluations(tmp_path: Path) -> None:
    predictions = trainer(tmp_path, FractalFigure(TREE, PANELS, CURVES)).predict(module({}), Points(TREE))
    assert predictions is not None and len(predictions) == 1


@pytest.mark.parametrize(
    ("guidance", "weight"),
    [
        (LogDensityMLP(width=4), 1.0),
        (ScoreScaling(1.4), 1.4),
        (Autoguidance(NORMAL, Interval(CosineWeight(3.0), 0.1, 1.0)), 3.0),
        (Guided([NORMAL, NORMAL], [1.5, 2.0]), 2.5),
    ],
)
def test_curve_weight_is_read_from_the_guidance(guidance: Any, weight: float) -> None:
    assert fractal_figure._weight(guidance) == pytest.approx(weight)


def test_outline_holds_99_percent_of_a_normal_distribution() -> None:
    truth = ReferenceDensity(NORMAL, smoothing=0.0)
    peak = -math.log(2 * math.pi * 0.04)
    assert truth.level == pytest.approx(peak + math.log(0.01), abs=0.1)  # P(chi^2_2 > q) = exp(-q / 2)
    assert truth.outside(truth.sample(20000, seed=7)) == pytest.approx(0.01, abs=0.003)
    assert truth.outside(torch.tensor([[0.0, 0.0], [9.0, 0.0], [torch.nan, 0.0]])) == pytest.approx(2 / 3)
    assert float(truth.sample(20000, sigma=0.15).std()) == pytest.approx(0.25, abs=0.005)
    window = ViewWindow((0.0, 0.0), 1.0)
    assert truth.map(window, 10) is truth.map(window, 10)


def test_maps_are_normalized_in_their_window_and_compared_in_nats() -> None:
    window = ViewWindow((0.1, -0.2), 1.5)
    grid = window.grid(60)
    assert grid.shape == (3600, 2) and bool(window.contains(grid).all())
    assert grid[0].tolist() == pytest.approx([0.1 - 1.475, -0.2 - 1.475]) and grid[1, 0] > grid[0, 0]
    assert window.contains(torch.tensor([[1.7, 0.0], [0.0, 1.29]])).tolist() == [False, True]
    narrow, wide = (
        DensityMap.of(lambda x, s=s: NORMAL.log_density(x, torch.tensor(s)) + 5, window, 300).normalized()
        for s in (0.0, 0.2)
    )
    assert float(narrow.values.exp().mean()) * 9 == pytest.approx(1.0, abs=1e-4)
    assert float(narrow.values.max()) == pytest.approx(-math.log(2 * math.pi * 0.04), abs=1e-2)
    assert narrow.divergence(wide) == pytest.approx(math.log(2) + 0.5 - 1, abs=1e-3)  # variances 0.04 and 0.08, d = 2
    assert narrow.divergence(narrow) == 0


def test_starting_points_keep_their_distance() -> None:
    truth = ReferenceDensity(NORMAL, smoothing=0.002)
    close_up = ZoomWindow(center=(0.2, 0.0), spacing=0.05, candidates=2000)
    x = start_points(truth, close_up)
    assert len(x) > 30 and bool(close_up.window.contains(x).all())
    distances = torch.cdist(x, x) + 9 * torch.eye(len(x))
    assert float(distances.min()) >= 0.05
    with pytest.raises(ValueError, match=r"none of 32768 true points lies in the close-up around \(0.45, 1.22\)"):
        start_points(truth, ZoomWindow(half_width=0.01))


def test_trajectories_follow_the_exact_flow_of_a_normal_distribution() -> None:
    x = torch.tensor([[0.1, 0.0], [-0.2, 0.3]])
    states = trajectories(NORMAL, Heun(KarrasGrid(5)), x, sigma=0.3, steps=40)
    assert states.shape == (41, 2, 2) and torch.equal(states[0], x)
    shrink = math.sqrt(0.04 / (0.04 + 0.09))
    torch.testing.assert_close(states[-1], x * shrink, atol=2e-4, rtol=0)
    first = NORMAL(x, torch.tensor(0.3)) - x
    assert bool(((states[1] - states[0]) * first >= 0).all())


def test_trajectories_of_a_mixture_end_inside_its_outline() -> None:
    pair = GaussianMixture([[-0.2, 0.0], [0.2, 0.0]], [[[1e-6, 0.0], [0.0, 1e-6]]] * 2)
    x = torch.tensor([[-0.05, 0.1], [0.05, -0.1]])
    ends = trajectories(pair, SAMPLER, x, sigma=0.1, steps=20)[-1]
    torch.testing.assert_close(ends, torch.tensor([[-0.2, 0.0], [0.2, 0.0]]), atol=5e-3, rtol=0)
