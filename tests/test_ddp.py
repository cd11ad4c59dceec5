"""Two processes with gloo on the CPU: the same noise, samples and numbers as one, the same bits when resumed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from callbacks import PostHocEMA
from lightning_guide.data import SampleBatch
from lightning_guide.denoiser import Denoiser
from lightning_guide.evaluation import FrechetDistance, RawPixels
from lightning_guide.evaluation.loop import DrawnSamples
from lightning_guide.guidance import Autoguidance, Snapshot
from lightning_guide.losses import EDMLoss, LossTerms
from lightning_guide.mistakes import circumstance
from lightning_guide.modules.monitor import TrainingDivergedError
from lightning_guide.snapshots import SnapshotStore
from tests import runs
from tests.processes import Processes
from tests.runs import TinyPictures, assert_same, evaluation, tiny_module, tiny_trainer

STEPS = 8
TRAIN = ("tests.test_ddp", "train")
EVALUATE = ("tests.test_ddp", "evaluate")


# --- what the processes do -----------------------------------------------------------------------------


def options(world: int) -> dict[str, Any]:
    """Trainer options; `strategy` is that of configs/ddp.yaml."""
    if world == 1:
        return {}
    strategy = DDPStrategy(process_group_backend="gloo", broadcast_buffers=False, gradient_as_bucket_view=True)
    return {"devices": world, "strategy": strategy}


def rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


class Notes(pl.Callback):
    """What this rank sees in training."""

    def __init__(self, signal_at: int | None = None, number: int = signal.SIGTERM) -> None:
        self.signal_at, self.number = signal_at, number
        self.data: list[Tensor] = []
        self.images: list[int] = []
        self.micro_steps = 0

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, *args: Any) -> None:
        self.data.append(batch.x)
        self.micro_steps += 1
        if self.micro_steps == self.signal_at:
            os.kill(os.getpid(), self.number)

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *args: Any) -> None:
        self.images.append(module.images_seen)


class Draws(EDMLoss):
    """Notes the noise of training."""

    noise_seen: list[Tensor] = []

    def at(self, denoiser: Denoiser, clean: Tensor, condition: Any, sigma: Tensor, noise: Tensor) -> LossTerms:
        terms = super().at(denoiser, clean, condition, sigma, noise)
        if terms.objective.requires_grad:
            Draws.noise_seen.append(torch.cat([sigma, noise.flatten()]))
        return terms


def train(
    folder: str, world: int, *, steps: int = STEPS, signal_rank: int = -1, dies: bool = False, batch: int = 4
) -> None:
    """A full run on `world` ranks; rank `signal_rank` gets a SIGTERM in its second step, or dies in its fifth."""
    runs.EDMLoss = Draws  # type: ignore[misc]
    runs.TinyPictures.__init__.__kwdefaults__["batch_size"] = batch  # type: ignore[index]
    saved: list[str] = []
    save = SnapshotStore.save

    def noting(store: SnapshotStore, *args: Any, **kwargs: Any) -> Path:
        saved.append(f"{kwargs['images']}")
        return save(store, *args, **kwargs)

    SnapshotStore.save = noting  # type: ignore[method-assign]
    hit = rank() == signal_rank
    notes = Notes(9, signal.SIGKILL) if hit and dies else Notes(3 if hit else None)
    module = runs.full_run(folder, steps=steps, callbacks=[notes], **options(world))
    callbacks: list[pl.Callback] = module.trainer.callbacks  # type: ignore[attr-defined]
    (averages,) = (callback for callback in callbacks if isinstance(callback, PostHocEMA))
    seen = {
        "average": dict(averages.live(0.05).state_dict()),
        "data": notes.data,
        "images": notes.images,
        "noise": Draws.noise_seen,
        "saved": saved,
        "weights": dict(module.state_dict()),
        "results": module.evaluations.results,
    }
    torch.save(seen, Path(folder) / f"seen-{rank()}.pt")


class Stored(TinyPictures):
    """Stores what the denoiser sees, so that nothing is rounded."""

    def decode(self, x: Tensor) -> Tensor:
        return x


class HandsThrough(Denoiser):
    """D = x: a sampler hands its noise through."""

    data_shape, num_classes, sigma_data = (1, 4, 4), 0, 0.5

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        return x


class Outputs(pl.Callback):
    """Keeps the samples by loop, and the results."""

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
    """Scores a finished run and saves what this rank drew and what it reports."""
    common: dict[str, Any] = {"num_samples": samples, "batch_size": 3}
    auto = evaluation(Autoguidance(Snapshot("1/2", 0.05), 2.0), **common)
    module = tiny_module(
        evaluations={"noise": evaluation(HandsThrough(), **common), "auto": auto},
        prediction=auto,
        metrics={"fd": FrechetDistance(RawPixels())} if samples > 1 else {},
    )
    outputs = Outputs()
    trainer = tiny_trainer(run, outputs, limit_val_batches=1.0, **options(world))
    if verb == "predict":
        outputs.drawn = {0: trainer.predict(module, datamodule=Stored(), return_predictions=True)}  # type: ignore[dict-item]
    else:
        getattr(trainer, verb)(module, datamodule=Stored(), verbose=False)
    drawn = {loop: [tuple(batch) for batch in batches] for loop, batches in outputs.drawn.items()}
    logged = {key: float(value) for key, value in trainer.callback_metrics.items()}
    torch.save({"drawn": drawn, "results": outputs.results, "logged": logged}, Path(out) / f"seen-{rank()}.pt")


def poisoned(folder: str, world: int) -> None:
    """Rank 1 alone gets data that are not numbers; both must end, and say so."""

    class Poisoned(TinyPictures):
        def encode(self, raw: Tensor) -> Tensor:
            x = super().encode(raw)
            bad = rank() == 1 and self.trainer is not None and self.trainer.global_step >= 2
            return x * float("nan") if bad else x

    trainer = tiny_trainer(folder, PostHocEMA(8), steps=20, **options(world))
    module = tiny_module(average=None, max_bad_steps=3)
    try:
        trainer.fit(module, datamodule=Poisoned())
    except TrainingDivergedError as error:
        assert "before step 4" in str(error) and "after 2 steps" in str(error), str(error)
        assert all(p.isfinite().all() for p in module.parameters())
        torch.save(dict(module.state_dict()), Path(folder) / f"seen-{rank()}.pt")


# --- training ------------------------------------------------------------------------------------------


def seen(folder: Path, world: int = 2) -> list[dict[str, Any]]:
    return [torch.load(folder / f"seen-{r}.pt", weights_only=True) for r in range(world)]


@pytest.fixture(scope="module")
def pair(processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two ranks: 8 steps of 2 micro-steps of 2 x 4 images."""
    folder = tmp_path_factory.mktemp("runs") / "pair"
    folder.mkdir()
    processes.call_ranks(2, TRAIN, folder / "log", folder=str(folder), world=2)
    return folder


def test_training_on_two_ranks(processes: Processes, pair: Path, tmp_path: Path) -> None:
    one, two = seen(pair)
    assert_same(one["weights"], two["weights"])
    assert_same(one["average"], two["average"])
    assert one["images"] == two["images"] == [16 * ((k + 1) // 2) for k in range(16)]  # of both ranks together
    assert not any(torch.equal(*noise) for noise in zip(one["noise"], two["noise"], strict=True))
    assert len(torch.stack(one["noise"] + two["noise"]).unique(dim=0)) == 32
    assert two["saved"] == [] and len(one["saved"]) == len(set(one["saved"])) * 2  # both widths, by rank 0 alone
    assert one["results"] == two["results"] and set(one["results"]) == {"plain", "auto"}
    # together they read what one process with twice the batch reads
    processes.call(TRAIN, tmp_path / "log", folder=str(tmp_path), world=1, batch=8)
    (alone,) = seen(tmp_path, 1)
    together = [torch.cat(batches) for batches in zip(one["data"], two["data"], strict=True)]
    assert_same(together, alone["data"])
    assert alone["images"] == one["images"]
    clock = runs.checkpoint(pair)["clock"]
    assert clock == runs.checkpoint(tmp_path)["clock"] == {"images_seen": 128, "planned_images": 128}
    assert set(runs.snapshots(tmp_path)) == set(runs.snapshots(pair))


def test_stopped_by_a_signal_to_one_rank_and_resumed(processes: Processes, pair: Path, tmp_path: Path) -> None:
    # ranks agree every 10 steps; the run of 8 ends before that, so this one is longer
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    for folder, signal_rank in ((whole, -1), (parted, 1), (parted, -1)):
        folder.mkdir(exist_ok=True)
        processes.call_ranks(2, TRAIN, folder / "log", folder=str(folder), world=2, steps=12, signal_rank=signal_rank)
        if signal_rank == 1:
            assert runs.checkpoint(parted)["global_step"] == 10
            assert "asked to stop: leaving after step 10" in (parted / "log.0").read_text()
    one, two = seen(parted)
    assert_same(one["weights"], two["weights"])
    assert_same(runs.checkpoint(parted), runs.checkpoint(whole))
    assert_same(runs.snapshots(parted), runs.snapshots(whole))


def test_continued_on_another_number_of_ranks(processes: Processes, pair: Path, tmp_path: Path) -> None:
    processes.call_ranks(2, TRAIN, tmp_path / "log", folder=str(tmp_path), world=2, steps=4)
    processes.call(TRAIN, tmp_path / "log", folder=str(tmp_path), world=1, batch=8)
    assert runs.checkpoint(tmp_path)["clock"] == {"images_seen": 128, "planned_images": 64}
    (rest,), whole = seen(tmp_path, 1), seen(pair)
    together = [torch.cat(batches) for batches in zip(whole[0]["data"], whole[1]["data"], strict=True)]
    assert_same(rest["data"], together[8:])


def test_bad_data_on_one_rank_end_both(processes: Processes, tmp_path: Path) -> None:
    processes.call_ranks(2, ("tests.test_ddp", "poisoned"), tmp_path / "log", folder=str(tmp_path), world=2)
    assert_same(*seen(tmp_path))


def test_a_rank_that_dies_ends_the_others_and_the_run_goes_on(
    processes: Processes, pair: Path, tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {"folder": str(tmp_path), "world": 2}
    begin = time.monotonic()
    pids = processes.start_ranks(2, TRAIN, tmp_path / "log", **arguments, signal_rank=1, dies=True)
    assert [processes.wait(pid, seconds=90) for pid in pids] == [1, -signal.SIGKILL]
    assert time.monotonic() - begin < 60
    said = (tmp_path / "log.0").read_text().strip().rpartition("RuntimeError: ")[2]
    sentence = circumstance(said)
    assert sentence is not None and sentence.startswith("another process of this run died or hangs (")
    assert circumstance("mat1 and mat2 shapes cannot be multiplied") is None
    assert runs.checkpoint(tmp_path)["global_step"] == 3
    processes.call_ranks(2, TRAIN, tmp_path / "log", **arguments)
    assert_same(runs.checkpoint(tmp_path), runs.checkpoint(pair))
    assert_same(runs.snapshots(tmp_path), runs.snapshots(pair))


def on_node(folder: str) -> None:
    """A full run on two nodes of one process each, of which this is one."""
    strategy = options(2)["strategy"]
    runs.full_run(folder, steps=STEPS, num_nodes=2, devices=1, strategy=strategy)


def by_variables(node: int) -> dict[str, str]:
    """What says which of two nodes a process is on."""
    return {"NODE_RANK": str(node), "LOCAL_RANK": "0"}


def by_slurm(node: int) -> dict[str, str]:
    """The same as srun says it."""
    task = {"PROCID": node, "NODEID": node, "LOCALID": 0, "NTASKS": 2, "NNODES": 2, "NTASKS_PER_NODE": 1}
    job = {"JOB_ID": 1, "JOB_NAME": "test", "NODELIST": "localhost", "JOB_NODELIST": "localhost"}
    return {f"SLURM_{name}": str(value) for name, value in (task | job).items()}


@pytest.mark.parametrize("told", [by_variables, pytest.param(by_slurm, marks=pytest.mark.slow)])
def test_two_nodes_of_one_process_are_one_node_of_two(
    told: Callable[[int], dict[str, str]], processes: Processes, pair: Path, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    logs = [tmp_path / f"log.{node}" for node in range(2)]
    nodes = [common | told(node) for node in range(2)]
    start = partial(processes.start, ("tests.test_ddp", "on_node"), folder=str(tmp_path))
    pids = [start(log, environment=node) for log, node in zip(logs, nodes, strict=True)]
    assert [processes.wait(pid) for pid in pids] == [0, 0], "\n".join(log.read_text()[-2000:] for log in logs)
    assert_same(runs.checkpoint(tmp_path), runs.checkpoint(pair))
    assert_same(runs.snapshots(tmp_path), runs.snapshots(pair))


TORCHRUN = """
from tests.test_ddp import on_node
import sys
on_node(sys.argv[1])
"""


@pytest.mark.slow
def test_two_agents_of_torchrun(pair: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(TORCHRUN)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    command += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    agents = [
        subprocess.Popen([*command, "--node-rank", node, str(script), str(tmp_path)], env=environment) for node in "01"
    ]
    assert [agent.wait(300) for agent in agents] == [0, 0]
    assert_same(runs.checkpoint(tmp_path), runs.checkpoint(pair))
    assert_same(runs.snapshots(tmp_path), runs.snapshots(pair))


# --- evaluation ----------------------------------------------------------------------------------------


def gathered(folder: Path, world: int, loop: int) -> tuple[Tensor, Tensor, Tensor]:
    """index, condition and samples of a loop over all ranks, in the order of the index."""
    batches = [batch for rank in seen(folder, world) for batch in rank["drawn"].get(loop, [])]
    index, condition, x = (torch.cat(column) for column in zip(*batches, strict=True))
    order = index.argsort()
    return index[order], condition[order], x[order]


@pytest.mark.parametrize(("verb", "samples"), [("validate", 13), ("test", 4), ("predict", 13)])
def test_evaluation_on_two_ranks_is_that_of_one(
    processes: Processes, pair: Path, tmp_path: Path, verb: str, samples: int
) -> None:
    for world in (1, 2):
        out = tmp_path / str(world)
        out.mkdir()
        arguments: dict[str, Any] = {"world": world, "verb": verb, "samples": samples}
        processes.call_ranks(world, EVALUATE, out / "log", run=str(pair), out=str(out), **arguments)
    first = int(verb == "validate")
    loops = {"predict": [first]}.get(verb, [first, first + 1])
    for loop in loops:
        alone, both = (gathered(tmp_path / str(world), world, loop) for world in (1, 2))
        assert both[0].tolist() == list(range(samples)) and torch.equal(alone[0], both[0])
        assert torch.equal(alone[1], both[1])
        torch.testing.assert_close(both[2], alone[2], rtol=1e-5, atol=1e-5)
        if loop == first and verb != "predict":
            assert torch.equal(both[2], alone[2])  # the noise, bit for bit
    (alone_seen,), both_seen = seen(tmp_path / "1", 1), seen(tmp_path / "2")
    sizes = [sum(len(index) for index, _, _ in rank["drawn"][loops[-1]]) for rank in both_seen]
    assert sizes == [samples - samples // 2, samples // 2]
    for rank_seen in both_seen:
        for name, values in alone_seen["results"].items():
            other = rank_seen["results"][name]
            assert other["samples"] == values["samples"] == samples and other["nfe"] == values["nfe"]
            assert other["fd"] == pytest.approx(values["fd"], rel=1e-4)
    same = [key for key in alone_seen["logged"] if not key.endswith("seconds")]
    assert verb == "predict" or {"auto/fd", "noise/samples"} <= set(same)
    assert verb != "validate" or {"heldout/sigma_0.3", "heldout/sigma_1"} <= set(same)
    for key in same:  # 13 held-out pictures, unevenly split
        for rank_seen in both_seen:
            close = pytest.approx(alone_seen["logged"][key], rel=1e-4 if "fd" in key else 1e-6)
            assert rank_seen["logged"][key] == close


@pytest.mark.parametrize("verb", ["test", "predict"])
def test_a_rank_without_anything_to_draw_is_refused_on_all(
    processes: Processes, pair: Path, tmp_path: Path, verb: str
) -> None:
    arguments: dict[str, Any] = {"run": str(pair), "out": str(tmp_path), "world": 2, "verb": verb, "samples": 1}
    pids = processes.start_ranks(2, EVALUATE, tmp_path / "log", **arguments)
    assert [processes.wait(pid) for pid in pids] == [1, 1]
    for rank in range(2):
        said = (tmp_path / f"log.{rank}").read_text()
        assert f"ValueError: {verb}: num_samples is at most 1; 2 processes need at least one sample each" in said


# --- Lightning's own launcher --------------------------------------------------------------------------


def launch(folder: str, script: str) -> None:
    """Rank 0, which starts `script` as rank 1."""
    sys.argv = [script]
    train(folder, 2)


def test_lightning_starts_the_second_process_itself(processes: Processes, pair: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"from tests.test_ddp import train\ntrain({str(tmp_path)!r}, 2)\n")
    pid = processes.start(("tests.test_ddp", "launch"), tmp_path / "log", folder=str(tmp_path), script=str(script))
    assert processes.wait(pid, seconds=500) == 0, (tmp_path / "log").read_text()[-3000:]
    said = (tmp_path / "log").read_text()
    assert "Starting with 2 processes" in said and "sync_dist" not in said
    for mine, theirs in zip(seen(tmp_path), seen(pair), strict=True):
        assert_same(mine["weights"], theirs["weights"])
    assert_same(runs.snapshots(tmp_path), runs.snapshots(pair))
