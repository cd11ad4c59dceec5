"""EDM's average: the rule by which it forgets, the width of its profile, and its life in a run."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from callbacks import HalfLifeEMA, PostHocEMA, RunCheckpoint
from lightning_guide.ema import half_life_retention, half_life_width, sigma_rel
from lightning_guide.runs.checkpoints import newest_checkpoint
from lightning_guide.runs.models import finished_model
from lightning_guide.snapshots import SnapshotStore
from tests.runs import TinyImages, evaluation, tiny_module, tiny_trainer


def test_retention_is_the_published_rule() -> None:
    assert half_life_retention(0, 512) == 0
    assert half_life_retention(1_000_000, 1_000_512) == pytest.approx(0.5 ** (512 / 50_000), rel=1e-12)
    for n in (10_000_000, 150_000_000):
        assert half_life_retention(n, n + 512) == pytest.approx(0.5 ** (512 / 500_000), rel=1e-12)
    assert half_life_retention(150_000_000, 150_500_000) == pytest.approx(0.5)  # after a half-life
    with pytest.raises(ValueError, match="move forward in images, got 5 -> 4"):
        half_life_retention(5, 4)


@pytest.mark.parametrize("images", [2_000, 10_000, 13_000, 40_000])
def test_width_is_that_of_the_weights_of_the_recursion(images: int) -> None:
    step, options = 5, {"half_life": 500.0, "ramp": 0.05}  # it stops growing after 10,000 images
    times = torch.arange(step, images + 1, step, dtype=torch.float64)
    weights = torch.zeros_like(times)
    for i, now in enumerate(range(step, images + 1, step)):
        kept = half_life_retention(now - step, now, **options)
        weights[:i] *= kept
        weights[i] = 1 - kept
    assert float(weights.sum()) == pytest.approx(1)
    mean = weights @ times
    std = float((weights @ (times - mean) ** 2).sqrt())
    assert half_life_width(images, **options) == pytest.approx(std / images, rel=0.01)


def test_while_it_grows_it_is_a_power_function() -> None:
    assert half_life_width(1000) == pytest.approx(sigma_rel(math.log(2) / 0.05 - 1), rel=1e-9)
    late = half_life_width(200_000_000)
    assert late * 200_000_000 == pytest.approx(500_000 / math.log(2), rel=1e-6)  # an exponential


def test_a_run_with_both_kinds_of_average(tmp_path: Path) -> None:
    def run(folder: Path, steps: int) -> HalfLifeEMA:
        edm = HalfLifeEMA(24, half_life=40, ramp=0.5)
        module = tiny_module(average="half_life", evaluations={"plain": evaluation()})
        trainer = tiny_trainer(
            folder, PostHocEMA(24), edm, RunCheckpoint(3), steps=steps, limit_val_batches=1.0, val_check_interval=6
        )
        trainer.fit(module, datamodule=TinyImages(), ckpt_path=newest_checkpoint(folder), weights_only=True)
        return edm

    edm = run(tmp_path / "whole", 12)  # 48 images of 4 each
    stored = SnapshotStore(tmp_path / "whole/half_life/snapshots").entries()
    widths = [round(half_life_width(images, half_life=40, ramp=0.5), 4) for images in (24, 48)]
    assert [(entry.images, entry.sigma_rel) for entry in stored] == list(zip((24, 48), widths, strict=True))
    assert [entry.images for entry in SnapshotStore(tmp_path / "whole/snapshots").entries()] == [24, 24, 48, 48]
    run(tmp_path / "parts", 6)
    run(tmp_path / "parts", 12)  # continued from a checkpoint
    one, other = (finished_model(tmp_path / name, None, "half_life").state_dict() for name in ("whole", "parts"))
    live = edm.live("half_life").state_dict()
    assert all(torch.equal(one[name], other[name]) and torch.equal(one[name], live[name]) for name in one)
    early = finished_model(tmp_path / "whole", 24, "half_life").state_dict()
    assert any(not torch.equal(early[name], one[name]) for name in one)
    with pytest.raises(ValueError, match="sigma_rel=half_life is tracked"):
        PostHocEMA(24).live("half_life")
    with pytest.raises(ValueError, match="half_life > 0 and ramp > 0, got 0 and 0.05"):
        HalfLifeEMA(24, half_life=0)


def test_updates_follow_the_rule(tmp_path: Path) -> None:
    edm = HalfLifeEMA(1000, half_life=40, ramp=0.5)
    module = tiny_module(average=None)
    weights: list[torch.Tensor] = []

    class Watch(RunCheckpoint):
        def on_train_batch_end(self, trainer, module, *_: object, **__: object) -> None:
            weights.append(module.denoiser.network.first.weight.detach().clone())

    tiny_trainer(tmp_path, edm, Watch(100), steps=10).fit(module, datamodule=TinyImages())
    expected, n = weights[0], 4
    for weight in weights[1:]:
        kept = 0.5 ** (4 / min(40, 0.5 * n))
        expected, n = kept * expected + (1 - kept) * weight, n + 4
    torch.testing.assert_close(edm.live("half_life").network.first.weight, expected)  # type: ignore[union-attr]


def test_another_half_life_is_refused_when_a_run_continues(tmp_path: Path) -> None:
    def fit(steps: int, **options: float) -> None:
        trainer = tiny_trainer(tmp_path, HalfLifeEMA(16, **options), RunCheckpoint(2), steps=steps)
        path = newest_checkpoint(tmp_path)
        trainer.fit(tiny_module(average=None), datamodule=TinyImages(), ckpt_path=path, weights_only=True)

    fit(2, half_life=100.0)
    with pytest.raises(
        ValueError, match="of the checkpoint has half_life 100 and HalfLifeEMA has 200; expected the same"
    ):
        fit(4, half_life=200.0)
    with pytest.raises(ValueError, match=r"has ramp 0.05 and HalfLifeEMA has 0.1; expected the same"):
        fit(4, half_life=100.0, ramp=0.1)
    fit(4, half_life=100.0)
