"""Evaluations on two processes: the same noise, samples and results as on one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from lightning_guide.data import SampleBatch
from lightning_guide.denoiser import Denoiser
from lightning_guide.evaluation import FrechetDistance, RawPixels
from lightning_guide.evaluation.sampling_loop import DrawnSamples
from lightning_guide.guidance import Autoguidance, Snapshot
from tests.processes import Processes
from tests.ranks import options, rank, seen
from tests.runs import TinyImages, evaluation, tiny_module, tiny_trainer

EVALUATE = ("tests.test_ddp_evaluation", "evaluate")


class Stored(TinyImages):
    """Data stored as denoiser inputs, without rounding."""

    def decode(self, x: Tensor) -> Tensor:
        return x


class NoiseDenoiser(Denoiser):
    """D = x: a sampler returns its noise."""

    data_shape, num_classes, sigma_data = (1, 4, 4), 0, 0.5

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        return x


class Outputs(pl.Callback):
    """Record the samples by loop, and the results."""

    def __init__(self) -> None:
        self.drawn: dict[int, list[DrawnSamples]] = {}
        self.results: dict[str, dict[str, float]] = {}

    def on_validation_batch_end(
        self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if isinstance(batch, SampleBatch):
            self.drawn.setdefault(dataloader_idx, []).append(outputs)

    def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
        self.results = module.evaluations.results

    on_test_batch_end, on_test_end = on_validation_batch_end, on_validation_end


def evaluate(run: str, out: str, world: int, *, verb: str, samples: int) -> None:
    """Evaluate a finished run and save samples and results of this rank."""
    common: dict[str, Any] = {"num_samples": samples, "batch_size": 3}
    auto = evaluation(Autoguidance(Snapshot("1/2", 0.05), 2.0), **common)
    module = tiny_module(
        evaluations={"noise": evaluation(NoiseDenoiser(), **common), "auto": auto},
        prediction=auto,
        metrics={"fd": FrechetDistance(RawPixels())} if samples > 1 else {},
    )
    outputs = Outputs()
    trainer = tiny_trainer(run, outputs, limit_val_batches=1.0, **options(world))
    if verb == "predict":
        outputs.drawn = {0: trainer.predict(module, datamodule=Stored(), return_predictions=True)}
    else:
        getattr(trainer, verb)(module, datamodule=Stored(), verbose=False)
    drawn = {loop: [tuple(batch) for batch in batches] for loop, batches in outputs.drawn.items()}
    logged = {key: float(value) for key, value in trainer.callback_metrics.items()}
    torch.save({"drawn": drawn, "results": outputs.results, "logged": logged}, Path(out) / f"seen-{rank()}.pt")


def gathered(folder: Path, world: int, loop: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return index, condition and samples of a loop over all ranks, in the order of the index."""
    batches = [batch for rank in seen(folder, world) for batch in rank["drawn"].get(loop, [])]
    index, condition, x = (torch.cat(column) for column in zip(*batches, strict=True))
    order = index.argsort()
    return index[order], condition[order], x[order]


@pytest.mark.parametrize(
    ("verb", "samples", "ranks"),
    [("validate", 13, 2), ("test", 4, 2), ("predict", 13, 2), pytest.param("validate", 13, 8, marks=pytest.mark.slow)],
)
def test_evaluation_on_several_ranks_equals_one(
    processes: Processes, pair: Path, tmp_path: Path, verb: str, samples: int, ranks: int
) -> None:
    for world in (1, ranks):
        out = tmp_path / str(world)
        out.mkdir()
        arguments: dict[str, Any] = {"world": world, "verb": verb, "samples": samples}
        processes.call_ranks(world, EVALUATE, out / "log", run=str(pair), out=str(out), **arguments)
    first = int(verb == "validate")
    loops = {"predict": [first]}.get(verb, [first, first + 1])
    for loop in loops:
        alone, both = (gathered(tmp_path / str(world), world, loop) for world in (1, ranks))
        assert both[0].tolist() == list(range(samples)) and torch.equal(alone[0], both[0])
        assert torch.equal(alone[1], both[1])
        torch.testing.assert_close(both[2], alone[2], rtol=1e-5, atol=1e-5)
        if loop == first and verb != "predict":
            assert torch.equal(both[2], alone[2])  # the noise, bit for bit
    (alone_seen,), both_seen = seen(tmp_path / "1", 1), seen(tmp_path / str(ranks), ranks)
    sizes = [sum(len(index) for index, _, _ in rank["drawn"][loops[-1]]) for rank in both_seen]
    assert sizes == [len(range(first, samples, ranks)) for first in range(ranks)]
    for rank_seen in both_seen:
        for name, values in alone_seen["results"].items():
            other = rank_seen["results"][name]
            assert other["samples"] == values["samples"] == samples and other["nfe"] == values["nfe"]
            assert other["fd"] == pytest.approx(values["fd"], rel=1e-4)
    same = [key for key in alone_seen["logged"] if not key.endswith("seconds")]
    assert verb == "predict" or {"auto/fd", "noise/samples"} <= set(same)
    assert verb != "validate" or {"heldout/sigma_0.3", "heldout/sigma_1"} <= set(same)
    for key in same:  # 13 held-out images, unevenly split
        for rank_seen in both_seen:
            close = pytest.approx(alone_seen["logged"][key], rel=1e-4 if "fd" in key else 1e-6)
            assert rank_seen["logged"][key] == close


@pytest.mark.parametrize("verb", ["test", "predict"])
def test_rank_without_samples_fails_on_all_ranks(processes: Processes, pair: Path, tmp_path: Path, verb: str) -> None:
    arguments: dict[str, Any] = {"run": str(pair), "out": str(tmp_path), "world": 2, "verb": verb, "samples": 1}
    pids = processes.start_ranks(2, EVALUATE, tmp_path / "log", **arguments)
    assert [processes.wait(pid) for pid in pids] == [1, 1]
    for number in range(2):
        log = (tmp_path / f"log.{number}").read_text()
        assert f"ValueError: {verb}: num_samples is at most 1; 2 processes need at least one sample each" in log
