"""SIGKILL during fine-tuning of published models, low-rank and whole: resumed runs end with the same weights.

On one process and on two; the processes are forked from one that has imported the libraries.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lightning_guide as lg
from callbacks import EarlySnapshots, PostHocEMA, RunCheckpoint
from datamodules.examples import TensorExamples
from lightning_guide.denoiser import Denoiser
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.optimization import LowRank
from lightning_guide.runs.checkpoints import checkpoint_step, newest_checkpoint
from lightning_guide.training.learning_rate import ConstantRate
from lightning_guide.training.losses import EpsilonLoss
from tests.processes import Processes, kill
from tests.ranks import options
from tests.runs import TinyImages, checkpoint, snapshots, tiny_trainer

diffusers = pytest.importorskip("diffusers", reason="needs the extra `pretrained`")
pytest.importorskip("transformers", reason="needs the extra `pretrained`")
for name in ("UNet2DConditionModel", "DiTTransformer2DModel"):  # the library imports a class when it is named
    getattr(diffusers, name)
pytestmark = pytest.mark.slow
STEPS = 20


class TinyLatents(TinyImages):
    """Latents of noise, with labels or random texts; a text of zeros is none."""

    def __init__(self, model: Denoiser, *, batch_size: int) -> None:
        super().__init__(batch_size=batch_size, shape=model.data_shape, classes=model.num_classes)
        self.token_channels = model.token_channels
        network: Any = model.get_submodule("denoiser.network" if isinstance(model, LowRank) else "network")
        self.text_length = len(network.empty) if model.token_channels else 0

    def _images(self, count: int, seed: int) -> TensorExamples:
        plain = super()._images(count, seed)
        if not self.token_channels:
            return plain
        generator = torch.Generator().manual_seed(seed)
        return TensorExamples(plain.x, torch.randn(count, self.text_length, self.token_channels, generator=generator))


def fine_tune(folder: str, place: str, kind: str, world: int) -> None:
    """Continue the run in `folder` to its end, on this rank."""
    model: Denoiser = lg.Pretrained(f"diffusers:{place}")
    if kind == "low rank":
        model = LowRank(model, rank=2, alpha=4)
    module = DiffusionModule(model, EpsilonLoss(), learning_rate=ConstantRate(1e-3), label_dropout=0.2)
    callbacks = [RunCheckpoint(3, keep=2), PostHocEMA(24, sigma_rels=[0.1]), EarlySnapshots(["1/4"], rebuildable=1)]
    trainer = tiny_trainer(folder, *callbacks, steps=STEPS, **options(world))
    data = TinyLatents(model, batch_size=4 // world)
    trainer.fit(module, datamodule=data, ckpt_path=newest_checkpoint(folder), weights_only=True)


@pytest.fixture(scope="module")
def loaded() -> Iterator[Processes]:
    """Processes that have imported diffusers."""
    server = Processes("tests.test_pretrained_killed")
    yield server
    server.close()


def reached(folder: Path) -> int:
    """Steps of the newest checkpoint."""
    newest = newest_checkpoint(folder)
    return 0 if newest is None else checkpoint_step(newest)


def train(server: Processes, folder: Path, *, kills: int, world: int, **arguments: Any) -> int:
    """Train until the run ends by itself, killed up to `kills` times at random moments; return how often it was."""
    folder.mkdir()
    draw, killed = random.Random(f"{folder.name} {arguments['kind']} {world}"), 0
    while True:
        log = folder / "log"
        call = ("tests.test_pretrained_killed", "fine_tune")
        pids = server.start_ranks(world, call, log, folder=str(folder), world=world, **arguments)
        if killed < kills:
            target, deadline = reached(folder) + 3, time.monotonic() + 120
            while reached(folder) < target and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(draw.uniform(0, 0.1))
            for pid in pids:
                kill(pid)
        statuses = [server.wait(pid) for pid in pids]
        if not any(statuses):
            return killed
        texts = [log.with_name(f"log.{rank}").read_text()[-2000:] for rank in range(world)]
        assert all(status in (0, -9) for status in statuses) and killed < kills, texts
        killed += 1


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("kind", ["low rank", "whole"])
@pytest.mark.parametrize("name", ["sd", "sdxl", "dit"])
def test_a_killed_fine_tuning_ends_with_the_same_weights(
    loaded: Processes, tiny_pipeline: Callable[[str], Path], tmp_path: Path, name: str, kind: str, world: int
) -> None:
    place = tiny_pipeline(name)
    before = lg.load(f"diffusers:{place}").state_dict()  # writes the cache of the empty prompt, too
    arguments: dict[str, Any] = {"place": str(place), "kind": kind, "world": world}
    assert train(loaded, tmp_path / "whole", kills=0, **arguments) == 0
    assert train(loaded, tmp_path / "killed", kills=2, **arguments) >= 1
    one, other = (checkpoint(tmp_path / each)["state_dict"] for each in ("whole", "killed"))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    stored = [snapshots(tmp_path / each) for each in ("whole", "killed")]
    assert stored[0].keys() == stored[1].keys() and len(stored[0]) >= 3
    for file, content in stored[0].items():
        assert _same(content["tensors"], stored[1][file]["tensors"])
    trained = {key for key in one if key.endswith(".up") or kind == "whole" and key.startswith("denoiser.")}
    moved = [key for key in trained if _moved(key, one[key], before)]
    assert len(moved) > 0.5 * len(trained)


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def _moved(key: str, weight: Tensor, before: dict[str, Tensor]) -> bool:
    published = before.get(key.removeprefix("denoiser."))
    return bool(weight.any()) if published is None else not torch.equal(weight, published)
