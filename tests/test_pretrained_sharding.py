"""Low-rank fine-tuning of a published model whose weights are sharded over two processes: the additions of DDP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lightning_guide as lg
from callbacks import PostHocEMA, RunCheckpoint
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.optimization import LowRank
from lightning_guide.runs.checkpoints import newest_checkpoint
from lightning_guide.training.learning_rate import ConstantRate
from lightning_guide.training.losses import EpsilonLoss
from tests.processes import Processes
from tests.runs import checkpoint, snapshots, tiny_trainer
from tests.test_pretrained_killed import TinyLatents
from tests.test_training_sharding import STRATEGIES

pytestmark = pytest.mark.slow


def train(folder: str, place: str, strategy: str, dtype: Any, steps: int) -> None:
    """Train to `steps` on this rank of two."""
    model = LowRank(lg.Pretrained(f"diffusers:{place}", dtype=dtype), rank=2)
    data = TinyLatents(model, batch_size=2)
    callbacks = [RunCheckpoint(2), PostHocEMA(100, sigma_rels=[0.1])]
    trainer = tiny_trainer(folder, *callbacks, steps=steps, devices=2, strategy=STRATEGIES[strategy]())
    module = DiffusionModule(model, EpsilonLoss(), learning_rate=ConstantRate(1e-3))
    trainer.fit(module, datamodule=data, ckpt_path=newest_checkpoint(folder), weights_only=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sharded_additions_are_those_of_ddp(
    tiny_pipeline: Callable[[str], Path], processes: Processes, tmp_path: Path, dtype: str
) -> None:
    place = str(tiny_pipeline("dit"))
    for strategy, steps in (("ddp", 4), ("fsdp", 2), ("fsdp", 4)):  # stopped after 2 steps and resumed
        (tmp_path / strategy).mkdir(exist_ok=True)
        arguments: dict[str, Any] = {"place": place, "strategy": strategy, "dtype": dtype, "steps": steps}
        call = ("tests.test_pretrained_sharding", "train")
        processes.call_ranks(2, call, tmp_path / "log", folder=str(tmp_path / strategy), **arguments)
    one, other = (checkpoint(tmp_path / each)["state_dict"] for each in ("ddp", "fsdp"))
    assert one.keys() == other.keys() and any(weight.any() for name, weight in one.items() if name.endswith(".up"))
    for name, weight in one.items():
        torch.testing.assert_close(other[name], weight, rtol=1e-4, atol=1e-5)
    kept = [snapshots(tmp_path / each) for each in ("ddp", "fsdp")]
    last = max(kept[0])
    for name, tensor in kept[0][last]["tensors"].items():
        torch.testing.assert_close(kept[1][last]["tensors"][name], tensor, rtol=1e-4, atol=1e-5)
