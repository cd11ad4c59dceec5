"""Averages in training: closed form from recorded weights, snapshots, checkpoints and second fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from callbacks import EarlySnapshots, PostHocEMA, RunCheckpoint
from lightning_guide.ema import gamma
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.runs.checkpoints import newest_checkpoint
from lightning_guide.snapshots import SnapshotStore
from tests.runs import (
    TinyImages,
    TinyNetwork,
    assert_same,
    checkpoint,
    evaluation,
    full_run,
    snapshots,
    tiny_module,
    tiny_trainer,
)


class Weights(pl.Callback):
    """Records (images, parameters) and the current averages after each optimizer step."""

    def __init__(self, averages: PostHocEMA | None = None, width: float = 0.05) -> None:
        self.averages, self.width = averages, width
        self.seen: list[tuple[int, list[Tensor]]] = []
        self.live: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        assert isinstance(pl_module, DiffusionModule)
        if not self.seen or self.seen[-1][0] < pl_module.images_seen:
            if pl_module.images_seen:
                self.seen.append((pl_module.images_seen, [p.detach().clone() for p in pl_module.denoiser.parameters()]))
                if self.averages is not None and self.averages.images:
                    state = self.averages.live(self.width).state_dict()
                    self.live.append({name: tensor.clone() for name, tensor in state.items()})


def closed_form(seen: list[tuple[int, list[Tensor]]], width: float) -> list[Tensor]:
    """Return the mean of the weights at updates, with factors proportional to t_i^(g+1) - t_{i-1}^(g+1)."""
    times = torch.tensor([0.0, *(t for t, _ in seen)], dtype=torch.float64)
    shares = (times ** (gamma(width) + 1)).diff() / times[-1] ** (gamma(width) + 1)
    parameters = [torch.stack([p[i].double() for _, p in seen]) for i in range(len(seen[0][1]))]
    return [torch.einsum("t,t...->...", shares, stacked) for stacked in parameters]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("every", [1, 3])
def test_averages_follow_the_closed_form(tmp_path: Path, every: int, accumulate: int) -> None:
    averages = PostHocEMA(1000, sigma_rels=(0.05, 0.1, 0.25), update_every_steps=every)
    weights = Weights()
    trainer = tiny_trainer(tmp_path, averages, weights, steps=7, accumulate_grad_batches=accumulate)
    trainer.fit(tiny_module(average=None), datamodule=TinyImages())
    assert [t for t, _ in weights.seen] == [4 * accumulate * k for k in range(1, 8)]
    updates = [weights.seen[k - 1] for k in range(1, 8) if k % every == 0 or k == 7]
    for width in (0.05, 0.1, 0.25):
        live = list(averages.live(width).parameters())
        for average, expected in zip(live, closed_form(updates, width), strict=True):
            assert average.dtype == torch.float32
            torch.testing.assert_close(average.double(), expected, rtol=1e-5, atol=1e-7)
    assert averages.images == 28 * accumulate


def test_low_precision_network_is_averaged_in_float32(tmp_path: Path) -> None:
    averages, weights = PostHocEMA(1000), Weights()
    module = tiny_module(TinyNetwork().to(torch.bfloat16), average=None)
    tiny_trainer(tmp_path, averages, weights, steps=3).fit(module, datamodule=TinyImages())
    assert weights.seen[0][1][0].dtype == torch.bfloat16
    for average, expected in zip(averages.live(0.1).parameters(), closed_form(weights.seen, 0.1), strict=True):
        assert average.dtype == torch.float32
        torch.testing.assert_close(average.double(), expected, rtol=1e-5, atol=1e-7)


def test_live_average_needs_a_first_step_and_a_tracked_width(tmp_path: Path) -> None:
    averages = PostHocEMA(1000)
    with pytest.raises(ValueError, match="sigma_rel=0.05 holds nothing before the first training step"):
        averages.live(0.05)
    with pytest.raises(ValueError, match=r"no average with sigma_rel=0.07 is tracked; tracked: \[0.05, 0.1\]"):
        averages.live(0.07)
    tiny_trainer(tmp_path, averages, steps=1).fit(tiny_module(average=None), datamodule=TinyImages())
    live = averages.live(0.05)
    assert not live.training and not any(p.requires_grad for p in live.parameters())
    with pytest.raises(ValueError, match="no average with sigma_rel=0.07 is tracked"):
        averages.live(0.07)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every_images": 0}, "every_images >= 1 and update_every_steps >= 1, got 0 and 1"),
        ({"every_images": 8, "update_every_steps": 0}, "got 8 and 0"),
        ({"every_images": 8, "sigma_rels": []}, "one or more different sigma_rels"),
        ({"every_images": 8, "sigma_rels": [0.1, 0.1]}, r"different sigma_rels, got \[0.1, 0.1\]"),
        ({"every_images": 8, "sigma_rels": [0.3]}, "sigma_rel must lie between 0 and"),
    ],
)
def test_invalid_settings_are_rejected(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PostHocEMA(**arguments)


# --- snapshots -----------------------------------------------------------------------------------------


def times(folder: Path) -> list[int]:
    return sorted({entry.images for entry in SnapshotStore(folder / "snapshots").entries()})


def test_snapshots_at_the_interval_at_early_fractions_and_at_the_end(tmp_path: Path) -> None:
    # in either order of the callbacks; 11 steps of 8 images; 1/4 of them is 22 images, first reached at 24
    for name, flip in (("one", False), ("other", True)):
        callbacks = [PostHocEMA(20), EarlySnapshots(["1/11", "1/4", "8/11"], rebuildable=2)]
        trainer = tiny_trainer(tmp_path / name, *callbacks[:: -1 if flip else 1], steps=11, accumulate_grad_batches=2)
        trainer.fit(tiny_module(average=None), datamodule=TinyImages())
        # half of 1/11 is 4 -> 8; 1/11 itself 8; 11 -> 16; 22 -> 24, also 20 -> 24; 32; 64; 40, 60 -> 64, 80; the end 88
        assert times(tmp_path / name) == [8, 16, 24, 32, 40, 64, 80, 88]


def test_sparse_updates_store_at_the_first_update_after_each_time(tmp_path: Path) -> None:
    callbacks = [PostHocEMA(20, update_every_steps=3), EarlySnapshots(["1/11"], rebuildable=1)]
    trainer = tiny_trainer(tmp_path, *callbacks, steps=11, accumulate_grad_batches=2)
    trainer.fit(tiny_module(average=None), datamodule=TinyImages())
    assert times(tmp_path) == [24, 48, 72, 88]  # updates at 24, 48, 72, 88


def test_snapshots_hold_recipe_plan_and_buffers(tmp_path: Path) -> None:
    module = tiny_module(average=None)
    trainer = tiny_trainer(tmp_path, PostHocEMA(16), steps=6)
    trainer.fit(module, datamodule=TinyImages())
    store = SnapshotStore(tmp_path / "snapshots")
    entries = store.entries()
    assert [(e.images, e.sigma_rel) for e in entries] == [(16, 0.05), (16, 0.1), (24, 0.05), (24, 0.1)]
    assert store.planned_images == 24 == module.planned_images
    for entry in entries:
        tensors, metadata = store.load(entry)
        assert metadata.recipe == module.denoiser.recipe and metadata.planned_images == 24
        assert metadata.buffers == ("network.calls",)
        assert int(tensors["network.calls"]) == entry.images // 4  # of the trained network, not averaged
        assert all(tensors[name].dtype == torch.float32 for name in tensors if name != "network.calls")


def test_stored_guider_equals_the_live_average_bit_for_bit(tmp_path: Path) -> None:
    averages = PostHocEMA(16, sigma_rels=[0.07, 0.2])
    weights = Weights(averages, width=0.07)
    trainer = tiny_trainer(tmp_path, averages, weights, steps=6)
    trainer.fit(tiny_module(average=None), datamodule=TinyImages())
    store = SnapshotStore(tmp_path / "snapshots")
    for images, live in ((16, weights.live[3]), ("1/1", weights.live[5])):
        assert_same(dict(store.guider(images=images, sigma_rel=0.07).state_dict()), live)
    x, sigma, label = torch.randn(5, 1, 4, 4), torch.rand(5) + 0.1, torch.tensor([0, 1, 2, -1, 0])
    guider = store.guider(images=24, sigma_rel=0.2)
    assert torch.equal(guider(x, sigma, label), averages.live(0.2)(x, sigma, label))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_snapshots_of_lower_precision_round_only_what_is_stored(tmp_path: Path, dtype: Any) -> None:
    averages = PostHocEMA(16, dtype=dtype)
    tiny_trainer(tmp_path, averages, steps=4).fit(tiny_module(average=None), datamodule=TinyImages())
    tensors = SnapshotStore(tmp_path / "snapshots").tensors(images=16, sigma_rel=0.05)
    for name, value in averages.live(0.05).named_parameters():
        assert value.dtype == torch.float32
        assert torch.equal(tensors[name], value.to(getattr(torch, dtype)).float())
    assert tensors["network.calls"].dtype == torch.int64


def test_folder_with_snapshots_of_another_network_is_rejected(tmp_path: Path) -> None:
    data = TinyImages(classes=0)
    network = TinyNetwork(num_classes=0)
    tiny_trainer(tmp_path, PostHocEMA(8), steps=2).fit(tiny_module(network, average=None), datamodule=data)
    before = snapshots(tmp_path)
    with pytest.raises(ValueError, match=r"safetensors belongs to another network .* expected a folder without"):
        tiny_trainer(tmp_path, PostHocEMA(8), steps=2).fit(tiny_module(average=None), datamodule=TinyImages())
    assert_same(snapshots(tmp_path), before)
    # the same network is accepted: a run killed before its first checkpoint starts over
    tiny_trainer(tmp_path, PostHocEMA(8), steps=2).fit(tiny_module(network, average=None), datamodule=data)


# --- checkpoints ---------------------------------------------------------------------------------------


def test_checkpoints_are_plain_data_with_only_the_module(tmp_path: Path) -> None:
    module = full_run(str(tmp_path), steps=4, accumulate=1, val_check_interval=2)
    path = newest_checkpoint(tmp_path)
    assert path is not None
    loaded = torch.load(path, weights_only=True)
    assert set(loaded["state_dict"]) == set(module.state_dict())
    assert {name.split(".")[0] for name in loaded["state_dict"]} == {"denoiser", "loss"}
    # averages are not submodules
    assert {name.split(".")[0] for name, _ in module.named_modules()} == {"", "denoiser", "loss"}
    own = [*module.denoiser.parameters(), *module.loss.parameters()]
    assert {id(p) for p in module.parameters()} == {id(p) for p in own}
    assert loaded["clock"] == {"images_seen": 16, "planned_images": 16}
    (key,) = (key for key in loaded if "PostHocEMA" in key)
    assert set(loaded[key]["averages"]) == {"0.05", "0.1"} and loaded[key]["images"] == 16


@pytest.mark.parametrize("every", [1, 3])
def test_averages_survive_a_resume_bit_for_bit(tmp_path: Path, every: int) -> None:
    # stopped at step 7, between two updates; the plan, and with it the early snapshots, is that of the full run
    whole, parted = str(tmp_path / "whole"), str(tmp_path / "parted")
    full_run(whole, update_every_steps=every)
    full_run(parted, update_every_steps=every, callbacks=[StopAfter(7)])
    assert checkpoint(parted)["global_step"] == 7
    full_run(parted, update_every_steps=every)
    assert_same(checkpoint(whole), checkpoint(parted))
    assert_same(snapshots(whole), snapshots(parted))


class StopAfter(pl.Callback):
    """Ends training after `step`."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        trainer.should_stop = trainer.global_step == self.step


def test_resuming_with_other_widths_is_rejected(tmp_path: Path) -> None:
    def fit(*widths: float, **options: Any) -> None:
        trainer = tiny_trainer(tmp_path, PostHocEMA(8, sigma_rels=widths), RunCheckpoint(2), steps=4)
        trainer.fit(tiny_module(average=None), datamodule=TinyImages(), **options)

    fit(0.05)
    with pytest.raises(ValueError, match=r"holds no averages with sigma_rels \[0.1\]; resume with the sigma_rels"):
        fit(0.1, ckpt_path=newest_checkpoint(tmp_path), weights_only=True)


def test_two_sets_of_averages_in_one_run(tmp_path: Path) -> None:
    def fit(folder: Path, *callbacks: PostHocEMA) -> None:
        trainer = tiny_trainer(folder, *callbacks, RunCheckpoint(2), steps=4)
        trainer.fit(tiny_module(average=None), datamodule=TinyImages())

    fit(tmp_path / "two", PostHocEMA(8), PostHocEMA(16, sigma_rels=[0.2], update_every_steps=2))
    fit(tmp_path / "first", PostHocEMA(8))
    fit(tmp_path / "second", PostHocEMA(16, sigma_rels=[0.2], update_every_steps=2))
    alone = snapshots(tmp_path / "first") | snapshots(tmp_path / "second")
    assert len(alone) == 5
    assert_same(snapshots(tmp_path / "two"), alone)


@pytest.mark.parametrize("average", [0.1, 0.2])
def test_evaluation_finds_the_callback_that_tracks_its_average(tmp_path: Path, average: float) -> None:
    module = tiny_module(average=average, evaluations={"plain": evaluation()})
    callbacks = [PostHocEMA(8), PostHocEMA(8, sigma_rels=[0.2])]
    tiny_trainer(tmp_path, *callbacks, steps=2, limit_val_batches=1.0, val_check_interval=2).fit(
        module, datamodule=TinyImages()
    )
    assert module._main == [callbacks[average == 0.2].live(average)]


# --- second fits ---------------------------------------------------------------------------------------


def test_new_fit_starts_new_averages_and_longer_fit_continues(tmp_path: Path) -> None:
    averages, weights = PostHocEMA(1000), Weights()
    module = tiny_module(average=None)
    trainer = tiny_trainer(tmp_path / "first", averages, weights, steps=3)
    trainer.fit(module, datamodule=TinyImages())
    trainer.fit_loop.epoch_loop.max_steps = 5
    trainer.fit(module, datamodule=TinyImages())
    assert [t for t, _ in weights.seen] == [4, 8, 12, 16, 20] and module.planned_images == 12
    for average, expected in zip(averages.live(0.1).parameters(), closed_form(weights.seen, 0.1), strict=True):
        torch.testing.assert_close(average.double(), expected, rtol=1e-5, atol=1e-7)

    weights.seen = []
    tiny_trainer(tmp_path / "second", averages, weights, steps=2).fit(module, datamodule=TinyImages())
    assert [t for t, _ in weights.seen] == [4, 8] and averages.images == 8 and module.planned_images == 8
    for average, expected in zip(averages.live(0.1).parameters(), closed_form(weights.seen, 0.1), strict=True):
        torch.testing.assert_close(average.double(), expected, rtol=1e-5, atol=1e-7)


def test_other_modules_are_rejected(tmp_path: Path) -> None:
    from lightning.pytorch.demos.boring_classes import BoringModel

    with pytest.raises(ValueError, match="averages the denoiser of a DiffusionModule, got a BoringModel"):
        tiny_trainer(tmp_path, PostHocEMA(8), steps=1).fit(BoringModel())
