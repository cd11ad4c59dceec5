"""What fails or is missing on one of two processes is left out, or refused, on both."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from torch import Tensor

from callbacks import RunCheckpoint, SampleGrid
from lightning_guide.evaluation import FrechetDistance, KernelDistance, RawPixels
from lightning_guide.utils.needs import MissingNeedsError
from tests.evaluated import Log
from tests.processes import Processes
from tests.ranks import options, rank
from tests.runs import TinyImages, evaluation, tiny_module, tiny_trainer

FIT = ("tests.test_ddp_needs", "fit")


class Fails(RawPixels):
    """Features that fail on rank 1 from call `first` on."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first, self.calls = first, 0

    def extract(self, x: Tensor) -> Tensor:
        self.calls += 1
        if rank() == 1 and self.calls >= self.first:
            raise RuntimeError("out of order")
        return super().extract(x)

    def title(self) -> str:
        return f"Fails({self.first})"


class FailsToCompute(FrechetDistance):
    """A distance that fails on rank 0, after the samples of both were combined."""

    def compute(self) -> dict[str, Tensor]:
        if rank() == 0:
            raise ZeroDivisionError("out of order")
        return super().compute()


class FailsToDraw(SampleGrid):
    """A grid that rank 0 cannot draw."""

    def draw(self, *args: Any) -> None:
        raise OSError("out of order")


class Needy(pl.Callback):
    """Misses something on rank 1."""

    def missing(self, trainer: pl.Trainer, module: Any) -> Iterable[str]:
        if rank() == 1:
            yield "rank 1 needs something"


def fit(folder: str, what: str) -> None:
    """Fit on two ranks; write results, warnings and checkpoints of this rank."""
    bad: dict[str, dict[str, Any]] = {
        "prepare": {"fd": FrechetDistance(Fails(2))},
        "prepare features": {"kid": KernelDistance(Fails(2))},
        "update": {"fd": FrechetDistance(Fails(3))},
        "compute": {"fd": FailsToCompute(RawPixels())},
    }
    log = Log()
    callbacks: list[pl.Callback] = [RunCheckpoint(100), log]
    callbacks += [FailsToDraw()] if what == "draw" else []
    callbacks += [Needy()] if what == "needs" else []
    good = {"fd": FrechetDistance(RawPixels())}
    evaluations = {"bad": evaluation(metrics=bad.get(what, good)), "good": evaluation(metrics=good)}
    trainer = tiny_trainer(folder, *callbacks, steps=4, limit_val_batches=1.0, val_check_interval=2, **options(2))
    found: dict[str, Any] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            trainer.fit(tiny_module(average=None, evaluations=evaluations), datamodule=TinyImages())
        except MissingNeedsError as error:
            found["needs"] = list(error.sentences)
    found |= {"step": trainer.global_step, "results": [sorted(each) for each in log.results]}
    found["failed"] = sorted({str(each.message) for each in caught if " failed: " in str(each.message)})
    found["checkpoints"] = sorted(path.name for path in Path(folder).rglob("step-*.ckpt"))
    Path(folder, f"rank-{rank()}.json").write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("what", "names", "message"),
    [
        ("prepare", ["good"], "evaluation 'bad' failed: RuntimeError: out of order"),
        pytest.param(
            "prepare features",
            ["good"],
            "evaluation 'bad' failed: RuntimeError: out of order",
            marks=pytest.mark.slow,
        ),
        ("update", ["good"], "evaluation 'bad' failed: RuntimeError: out of order"),
        pytest.param(
            "compute",
            ["good"],
            "evaluation 'bad' failed: ZeroDivisionError: out of order",
            marks=pytest.mark.slow,
        ),
        ("draw", ["bad", "good"], "FailsToDraw failed: OSError: out of order"),
        ("needs", None, ""),
    ],
)
def test_failure_on_one_of_two_processes(
    processes: Processes, tmp_path: Path, what: str, names: list[str] | None, message: str
) -> None:
    processes.call_ranks(2, FIT, tmp_path / "log", folder=str(tmp_path), what=what)
    first, second = (json.loads((tmp_path / f"rank-{i}.json").read_text()) for i in range(2))
    assert first["step"] == second["step"] and first["results"] == second["results"]
    if names is None:
        assert first["needs"] == second["needs"] == ["rank 1 needs something"] and not first["checkpoints"]
        return
    assert first["step"] == 4 and first["results"] == [names] * 2
    assert first["failed"][0].startswith(message) and len(first["failed"]) == 1
    assert first["checkpoints"] == ["step-000000002.ckpt", "step-000000004.ckpt"]
