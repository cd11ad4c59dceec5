"""Tiny runs for tests: a network of two layers on 40 small images, trained in a fraction of a second.

Everything is a function of the arguments, so that the same call in another process gives the same run.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from callbacks import EarlySnapshots, GracefulStop, PostHocEMA, RunCheckpoint
from datamodules.base_images import ImageData
from datamodules.examples import TensorExamples
from lightning_guide.denoiser import Denoiser
from lightning_guide.evaluation.evaluation import Evaluation
from lightning_guide.guidance import Autoguidance, Snapshot
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.network import Network
from lightning_guide.noise import KarrasGrid
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.runs.checkpoints import newest_checkpoint
from lightning_guide.samplers import Euler
from lightning_guide.snapshots import SnapshotStore
from lightning_guide.training.losses import EDMLoss

SAMPLER = Euler(KarrasGrid(3, sigma_min=0.1, sigma_max=5.0))
CLASSES = 3


class TinyNetwork(Network):
    """Two linear layers with a label, dropout, a buffer that changes in training, and weights of bounded norm."""

    def __init__(
        self, data_shape: tuple[int, ...] = (1, 4, 4), num_classes: int = CLASSES, *, dropout: float = 0.25
    ) -> None:
        super().__init__()
        self.data_shape, self.num_classes = tuple(data_shape), num_classes
        size, width = torch.Size(data_shape).numel(), 8
        self.first = nn.Linear(size + 1 + num_classes, width)
        self.last = nn.Linear(width, size)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.constrain()

    def embed(self, condition: Tensor | None, batch: int) -> Tensor:
        place = self.first.weight.device
        label = torch.full((batch,), -1, device=place) if condition is None else condition
        return (label[:, None] == torch.arange(self.num_classes, device=place)).float()

    def forward(self, x: Tensor, c_noise: Tensor, embedding: Tensor | None) -> Tensor:
        assert embedding is not None
        if self.training:
            self.calls += 1
        u = torch.cat([x.flatten(1), c_noise[:, None], embedding], 1).to(self.first.weight.dtype)
        return self.last(self.dropout(torch.tanh(self.first(u)))).reshape(x.shape)

    @torch.no_grad()
    def constrain(self) -> None:
        for weight in (self.first.weight, self.last.weight):
            weight.div_(weight.norm(dim=1, keepdim=True).clamp(min=1))


class TinyImages(ImageData):
    """40 images of noise and 13 held out, in 3 classes."""

    def __init__(
        self, *, batch_size: int = 4, num_workers: int = 0, shape: tuple[int, ...] = (1, 4, 4), classes: int = CLASSES
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, flip=True)
        self.data_shape, self.num_classes = shape, classes

    def training(self) -> TensorExamples:
        return self._images(40, 0)

    def heldout(self) -> TensorExamples:
        return self._images(13, 1)

    def _images(self, count: int, seed: int) -> TensorExamples:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randint(256, (count, *self.data_shape), generator=generator).to(torch.uint8)
        labels = torch.randint(max(self.num_classes, 1), (count,), generator=generator)
        return TensorExamples(x, labels if self.num_classes else None)


def evaluation(guidance: Denoiser | None = None, **options: Any) -> Evaluation:
    """Return an evaluation of 5 samples, 2 at a time."""
    chosen: dict[str, Any] = {"sampler": SAMPLER, "num_samples": 5, "batch_size": 2} | options
    return Evaluation(**chosen) if guidance is None else Evaluation(guidance=guidance, **chosen)


def tiny_module(network: Network | None = None, **options: Any) -> DiffusionModule:
    """Return a module with the same initial weights at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        denoiser = Preconditioned(network or TinyNetwork())
        chosen: dict[str, Any] = {"heldout_sigmas": (0.3, 1.0), "loss": EDMLoss()} | options
        chosen.setdefault("label_dropout", 0.25 if denoiser.num_classes else 0.0)
        return DiffusionModule(denoiser, **chosen)


def tiny_trainer(folder: Path | str, *callbacks: pl.Callback, steps: int = 8, **options: Any) -> pl.Trainer:
    """Return a trainer like that of the command line, without logger."""
    chosen: dict[str, Any] = {
        "accelerator": "cpu",
        "max_steps": steps,
        "max_epochs": -1,
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "inference_mode": False,
        "limit_val_batches": 0,
        "logger": False,
        "enable_checkpointing": any(isinstance(callback, RunCheckpoint) for callback in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(default_root_dir=str(folder), callbacks=list(callbacks), **(chosen | options))


def full_run(
    folder: str, *, steps: int = 12, accumulate: int = 2, workers: int = 0, update_every_steps: int = 1, **options: Any
) -> DiffusionModule:
    """Start or resume a run with averages, early snapshots, checkpoints and guided evaluations."""
    evaluations = {"plain": evaluation(), "auto": evaluation(Autoguidance(Snapshot("1/2", 0.05), 2.0))}
    module = tiny_module(evaluations=evaluations, average=0.05)
    trainer = tiny_trainer(
        folder,
        PostHocEMA(24, update_every_steps=update_every_steps),
        EarlySnapshots(["1/2", "1/3.5"], rebuildable=2),
        RunCheckpoint(3),
        GracefulStop(),
        *options.pop("callbacks", ()),
        steps=steps,
        **{"accumulate_grad_batches": accumulate, "limit_val_batches": 1.0, "val_check_interval": 8} | options,
    )
    data = TinyImages(num_workers=workers)
    trainer.fit(module, datamodule=data, ckpt_path=newest_checkpoint(folder), weights_only=True)
    return module


def checkpoint(folder: Path | str) -> dict[str, Any]:
    """Return the newest checkpoint of a run without the loop counters."""
    path = newest_checkpoint(folder)
    assert path is not None, f"no checkpoint in {folder}"
    loaded = torch.load(path, weights_only=True)
    return {name: value for name, value in loaded.items() if name not in ("loops", "epoch")}


def snapshots(folder: Path | str) -> dict[str, Any]:
    """Return the verified contents of all snapshots of a run. (The bytes of headers have no fixed order.)"""
    store = SnapshotStore(Path(folder) / "snapshots")
    loaded = {entry.path.name: store.load(entry) for entry in store.entries()}
    return {name: {"tensors": tensors, **asdict(metadata)} for name, (tensors, metadata) in loaded.items()}


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """Assert that nested containers are equal, tensors bit for bit."""
    assert type(one) is type(other), f"{where}: {type(one)} and {type(other)}"
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other), f"{where}: {one} and {other}"
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), f"{where}: {list(one)} and {list(other)}"
        for key in one:
            assert_same(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), f"{where}: {len(one)} and {len(other)} elements"
        for i, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}/{i}")
    else:
        assert one == other, f"{where}: {one!r} and {other!r}"
