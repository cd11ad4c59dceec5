"""FSDP2 on two processes: the weights of DDP, sharded averages, full snapshots, bit-identical resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

from callbacks import PostHocEMA, RunCheckpoint
from lightning_guide.networks import EDM2UNet
from lightning_guide.runs.checkpoints import newest_checkpoint
from lightning_guide.snapshots import SnapshotStore
from lightning_guide.training.losses import EDMLoss
from lightning_guide.training.sharding import unsharded_state
from tests.processes import Processes
from tests.runs import TinyImages, assert_same, evaluation, snapshots, tiny_module, tiny_trainer

SHAPE = (1, 8, 8)
STRATEGIES: dict[str, Any] = {
    "ddp": lambda: DDPStrategy(process_group_backend="gloo"),
    "fsdp": lambda: ModelParallelStrategy(
        data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=False, process_group_backend="gloo"
    ),
}


def train(folder: str, strategy: str, steps: int) -> None:
    """Train a U-Net with uncertainty, averages, checkpoints and an evaluation of 5 samples on 2 ranks."""
    network = EDM2UNet(SHAPE, num_classes=3, model_channels=8, channel_mult=[1, 2], num_blocks=1,
                       attention_resolutions=[4])  # fmt: skip
    module = tiny_module(network, loss=EDMLoss(uncertainty=True), evaluations={"plain": evaluation()}, average=0.05)
    trainer = tiny_trainer(
        folder,
        PostHocEMA(16),
        RunCheckpoint(2),
        steps=steps,
        devices=2,
        strategy=STRATEGIES[strategy](),
        accumulate_grad_batches=2,
        limit_val_batches=1.0,
        val_check_interval=4,
    )
    data = TinyImages(batch_size=2, shape=SHAPE)
    trainer.fit(module, datamodule=data, ckpt_path=newest_checkpoint(folder), weights_only=True)
    weights = unsharded_state(module.denoiser)
    if trainer.is_global_zero:
        torch.save({"weights": weights, "sampled": dict(module.evaluations.results["plain"])}, f"{folder}/end.pt")


TRAIN = ("tests.test_training_sharding", "train")


@pytest.mark.slow
def test_sharded_training_equals_ddp(processes: Processes, tmp_path: Path) -> None:
    for name, strategy, steps in (("ddp", "ddp", 4), ("fsdp", "fsdp", 4), ("two", "fsdp", 2), ("two", "fsdp", 4)):
        (tmp_path / name).mkdir(exist_ok=True)
        processes.call_ranks(2, TRAIN, tmp_path / "log", folder=str(tmp_path / name), strategy=strategy, steps=steps)
    ends = {name: torch.load(tmp_path / name / "end.pt", weights_only=True) for name in ("ddp", "fsdp", "two")}
    for name, expected in ends["ddp"]["weights"].items():
        torch.testing.assert_close(ends["fsdp"]["weights"][name], expected, rtol=1e-5, atol=1e-5)
    assert ends["fsdp"]["sampled"]["samples"] == 5
    assert_same(ends["two"]["weights"], ends["fsdp"]["weights"])  # stopped after 2 steps and resumed
    mine, theirs = (snapshots(tmp_path / name) for name in ("fsdp", "ddp"))
    assert mine.keys() == theirs.keys() and len(mine) == 4
    for file, snapshot in theirs.items():
        assert mine[file]["recipe"] == snapshot["recipe"]
        for name, tensor in snapshot["tensors"].items():
            torch.testing.assert_close(mine[file]["tensors"][name], tensor, rtol=1e-5, atol=1e-5)
    SnapshotStore(tmp_path / "fsdp" / "snapshots").guider(images=32, sigma_rel=0.1)  # any process can load it
