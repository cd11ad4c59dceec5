"""Metrics report: strict JSON, a table on the terminal, a table in TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from callbacks import PostHocEMA
from callbacks.metrics_report import MetricsReport
from datamodules.points import Points
from lightning_guide.data import Batch
from lightning_guide.denoiser import Trajectory
from lightning_guide.distributions.gaussian_mixture import GaussianMixture
from lightning_guide.evaluation import FrechetDistance, KernelDistance, ModuleFeatures, RawPixels
from lightning_guide.evaluation.evaluation import Evaluation
from lightning_guide.evaluation.metrics.base import SampleMetric
from lightning_guide.guidance import Autoguidance, ScoreScaling, Snapshot
from lightning_guide.guidance.training_free import DPS, ConstantStep, EnergyGuidance
from lightning_guide.guidance.training_free.schedules import SigmaWindow
from lightning_guide.guidance.training_free.updates import AtClean
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.networks.log_density_mlp import LogDensityMLP
from lightning_guide.noise import KarrasGrid
from lightning_guide.objectives import Energy, SquaredDistance
from lightning_guide.objectives.energy import Loss
from lightning_guide.samplers import Euler
from lightning_guide.training.losses import ScoreMatchingLoss

SAMPLER = Euler(KarrasGrid(2))
MIXTURE = GaussianMixture([[-1.0, 0.0], [1.0, 0.0]], [[[0.01, 0.0], [0.0, 0.01]]] * 2)


class Numbers(SampleMetric):
    """Metric with fixed values, independent of the samples."""

    def __init__(self, **values: float) -> None:
        super().__init__()
        self.values = values

    def prepare(self, reference: Iterable[Batch]) -> None:
        pass

    def update(self, x: Tensor, condition: Tensor | None = None) -> None:
        pass

    def compute(self) -> dict[str, Tensor]:
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in self.values.items()}


def module(evaluations: dict[str, Evaluation]) -> DiffusionModule:
    return DiffusionModule(LogDensityMLP(width=4), ScoreMatchingLoss(), evaluations=evaluations, average=None)


def evaluation(**values: float) -> Evaluation:
    return Evaluation(sampler=SAMPLER, num_samples=4, metrics={"numbers": Numbers(**values)} if values else {})


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


def metrics(folder: Path) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads((folder / "metrics.json").read_text(), parse_constant=refuse)


def test_test_writes_every_evaluation_and_prints_an_aligned_table(tmp_path: Path, capsys: Any) -> None:
    evaluations = {
        "unguided": evaluation(fd=1.91234567, lost=0.0, odd=float("nan")),
        "cfg, w = 2": evaluation(fd=12345.678, far=float("inf")),
    }
    trainer(tmp_path, MetricsReport()).test(module(evaluations), Points(MIXTURE, batch_size=8), verbose=False)
    written = metrics(tmp_path / "report")
    assert list(written) == ["unguided", "cfg, w = 2"]
    assert written["unguided"]["fd"] == 1.91234567 and written["unguided"]["odd"] is None
    assert written["cfg, w = 2"]["far"] is None and written["cfg, w = 2"]["nfe"] == 2.0
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    head, rule, *rows = lines
    assert head.split() == ["evaluation", "nfe", "samples", "seconds", "fd", "lost", "odd", "far"]
    assert set(rule) == {"-"} and len({len(line) for line in lines}) == 1
    assert rows[0].split()[-4:] == ["1.912", "0", "nan", "-"] and rows[1].split()[-4:] == ["1.235e+04", "-", "-", "inf"]
    assert rows[1].startswith("cfg, w = 2 ")
    for name in ("samples", "fd"):  # numbers are right-aligned with their header
        end = head.index(name) + len(name)
        assert all(row[end - 1] != " " and row[end : end + 1] in (" ", "") for row in rows)


@pytest.mark.filterwarnings("ignore:.*it will be skipped")
@pytest.mark.filterwarnings("ignore:.*samples are not finite")  # an untrained network
def test_fit_reports_each_validation_and_skipped_evaluations(tmp_path: Path, capsys: Any) -> None:
    guided = Evaluation(Autoguidance(Snapshot(1000)), SAMPLER, num_samples=4)  # of a longer run
    report = trainer(
        tmp_path,
        PostHocEMA(8),
        MetricsReport(str(tmp_path / "out")),
        logger=TensorBoardLogger(str(tmp_path), name="", version="events"),
        max_steps=4,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=1,
    )
    evaluations = {"plain": evaluation(fd=2.5), "guided": guided, "scaled": Evaluation(ScoreScaling(1.5), SAMPLER)}
    report.fit(module(evaluations), Points(MIXTURE, batch_size=8, heldout_size=8))
    assert list(metrics(tmp_path / "out")) == ["plain", "scaled"]
    out = capsys.readouterr().out
    assert out.count("skipped: guided (") == 2 and out.count("evaluation") == 2  # and none in the sanity check
    log = EventAccumulator(str(tmp_path / "events"))
    log.Reload()
    events = log.Tensors("report/metrics/text_summary")
    assert [event.step for event in events] == [2, 4]
    head, rule, *rows = events[-1].tensor_proto.string_val[0].decode().splitlines()
    assert head.startswith("| evaluation | nfe |") and rule.startswith("| :-- | --: |")
    assert head.count("|") == rule.count("|") == rows[0].count("|")
    assert rows[0].startswith("| plain | 2 | 4 |") and rows[0].endswith("| 2.5 | - |")
    assert any(row.startswith("skipped: guided (") for row in rows)


class Some(Energy):
    """Energy with zero gradient for samples of even index, and for the others until the last of its steps."""

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        raise AssertionError

    def start(self, trajectory: Trajectory) -> Loss:
        index = torch.tensor(trajectory.seeds.indices)

        def loss(x: Tensor, condition: Tensor | None, number: Tensor) -> Tensor:
            last = trajectory.step == trajectory.steps - 1
            return x.square().sum(1) * (index[number] % 2) * last

        return loss


@pytest.mark.filterwarnings("ignore:.*is off in all")
def test_samples_without_a_guidance_gradient_are_reported(tmp_path: Path, capsys: Any) -> None:
    guided = [EnergyGuidance(Some(), [AtClean(ConstantStep(0.01))]), DPS(SquaredDistance([3.0, 3.0], 1.0), 0.1)]
    never = EnergyGuidance(Some(), [AtClean(ConstantStep(0.01))], window=SigmaWindow(low=1e4))
    some, all_of_them, off = (
        Evaluation(guidance, SAMPLER, num_samples=5, batch_size=2, metrics={}) for guidance in [*guided, never]
    )
    evaluations = {"plain": evaluation(), "some": some, "all": all_of_them, "off": off}
    logger = TensorBoardLogger(str(tmp_path), name="", version="events")
    options: dict[str, Any] = {"logger": logger, "inference_mode": False}
    trainer(tmp_path, MetricsReport(), **options).test(module(evaluations), Points(MIXTURE), verbose=False)
    written = metrics(tmp_path / "report")
    assert written["some"]["unguided"] == 3  # samples 0, 2 and 4
    assert not any("unguided" in written[name] for name in ("plain", "all", "off"))
    head, _, *rows = [line for line in capsys.readouterr().out.splitlines() if line]
    assert head.split()[-1] == "unguided" and [row.split()[-1] for row in rows] == ["-", "3", "-", "-"]
    log = EventAccumulator(str(tmp_path / "events"))
    log.Reload()
    tags = [tag for tag in log.Tags()["scalars"] if "unguided" in tag]
    assert len(tags) == 1 and tags[0].startswith("some/unguided") and log.Scalars(tags[0])[0].value == 3


def test_extractors_are_in_the_file_and_below_the_table(tmp_path: Path, capsys: Any) -> None:
    torch.manual_seed(0)
    net = ModuleFeatures(torch.nn.Linear(2, 2))
    fd, kid = FrechetDistance(RawPixels()), KernelDistance(net)
    judges: dict[str, SampleMetric] = {"fd": fd, "kid": kid, "n": Numbers(n=1)}
    judged = Evaluation(sampler=SAMPLER, num_samples=4, metrics=judges)
    evaluations = {"plain": evaluation(fd=2.5), "one": judged, "two": judged}
    data = Points(MIXTURE, batch_size=8, training_size=16)
    trainer(tmp_path, MetricsReport()).test(module(evaluations), data, verbose=False)
    written = metrics(tmp_path / "report")
    assert "extractors" not in written["plain"]
    assert (
        written["one"]["extractors"]
        == written["two"]["extractors"]
        == {
            "fd": ["RawPixels, no weights"],
            "kid": [str(net.identity)],
        }
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == ["fd: RawPixels, no weights", f"kid: {net.title()}, weights {net.identity.weights[:16]}"]


def test_without_evaluations_nothing_is_printed(tmp_path: Path, capsys: Any) -> None:
    trainer(tmp_path, MetricsReport()).validate(module({}), Points(MIXTURE, heldout_size=8), verbose=False)
    assert metrics(tmp_path / "report") == {}
    assert "evaluation" not in capsys.readouterr().out


def test_interrupted_write_leaves_the_previous_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Points(MIXTURE, heldout_size=8)
    trainer(tmp_path, MetricsReport()).test(module({"a": evaluation(fd=1.0)}), data, verbose=False)

    def fail(*arguments: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(ValueError, match="^MetricsReport failed: OSError: disk full$"):
        trainer(tmp_path, MetricsReport()).test(module({"a": evaluation(fd=2.0)}), data, verbose=False)
    assert metrics(tmp_path / "report")["a"]["fd"] == 1.0
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["metrics.json"]
