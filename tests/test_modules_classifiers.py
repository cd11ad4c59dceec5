"""Training of the classifier: it learns, resumes exactly, stores weights for metrics, rejects mismatched data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from datamodules import Digits
from lightning_guide.data import Batch
from lightning_guide.evaluation import ClassifierFeatures
from lightning_guide.modules.classifiers import ClassifierModule, random_shift
from lightning_guide.networks.classifiers import SmallClassifier
from lightning_guide.snapshots import SnapshotStore


def module(widths: Sequence[int] = (16, 16), **options: Any) -> ClassifierModule:
    """Return a small classifier of digits, always with the same initial weights."""
    torch.manual_seed(0)
    return ClassifierModule(SmallClassifier([1, 8, 8], num_classes=10, widths=widths), **options)


def trainer(folder: Path, *, max_steps: int, **options: Any) -> pl.Trainer:
    """Return a quiet trainer on the CPU."""
    settings = {
        "max_epochs": -1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0,
        "limit_val_batches": 0, "use_distributed_sampler": False, "inference_mode": False,
    }  # fmt: skip
    return pl.Trainer(default_root_dir=folder, max_steps=max_steps, **(settings | options))


def test_learns_the_digits_and_features_load_its_weights(tmp_path: Path) -> None:
    learner = module((32, 64), optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=5e-3))
    fit = trainer(tmp_path, max_steps=150, limit_val_batches=1.0, val_check_interval=150, check_val_every_n_epoch=None)
    data = Digits(batch_size=64)
    fit.fit(learner, data)
    accuracy = fit.callback_metrics["heldout/accuracy"].item()
    assert learner.images_seen == 150 * 64 and accuracy > 0.9

    (entry,) = SnapshotStore(tmp_path / "snapshots").entries()
    assert (entry.images, entry.sigma_rel) == (150 * 64, 0.0)
    held = data.heldout()
    x, labels = held.take(torch.arange(len(held)))
    predicted = ClassifierFeatures(str(tmp_path)).logits(x).argmax(1)
    assert (predicted == labels).double().mean().item() == pytest.approx(accuracy, abs=1e-6)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # the resumed run does not save
def test_resumed_fit_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    whole = module(augment=1)
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=5, save_top_k=-1)
    options = {"max_steps": 12, "accumulate_grad_batches": 2}
    saving = trainer(tmp_path / "whole", **options, callbacks=[saver], enable_checkpointing=True)
    saving.fit(whole, Digits(batch_size=16))
    resumed = module(augment=1)
    trainer(tmp_path / "resumed", **options).fit(
        resumed, Digits(batch_size=16), ckpt_path=str(tmp_path / "step=5.ckpt"), weights_only=True
    )
    assert whole.images_seen == resumed.images_seen == 12 * 2 * 16
    for (name, expected), found in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(found, expected), name


def test_learning_rate_rises_and_falls_to_zero(tmp_path: Path) -> None:
    rates: list[float] = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    watched = module(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0))
    trainer(tmp_path, max_steps=40, callbacks=[Watch()]).fit(watched, Digits(batch_size=4))
    assert rates == pytest.approx([0.5, *[1 - k / 40 for k in range(1, 40)]])


def test_early_stops_and_trials_store_no_weights(tmp_path: Path) -> None:
    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            trainer.should_stop = trainer.global_step >= 3

    stopped = module()
    trainer(tmp_path, max_steps=9, callbacks=[Stop()]).fit(stopped, Digits(batch_size=8))
    assert stopped.images_seen == 3 * 8
    trainer(tmp_path, max_steps=1, fast_dev_run=True).fit(module(), Digits(batch_size=8))
    assert not (tmp_path / "snapshots").exists()


def test_training_leaves_the_global_generator_unchanged(tmp_path: Path) -> None:
    learner = module(augment=2)
    torch.manual_seed(3)
    drawn = torch.rand(4)
    torch.manual_seed(3)
    trainer(tmp_path, max_steps=2).fit(learner, Digits(batch_size=8))
    assert torch.equal(torch.rand(4), drawn)


class Unlabeled(Digits):
    """Digits without labels."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return super().on_after_batch_transfer(batch, dataloader_idx)._replace(condition=None)


def test_mismatched_data_is_rejected(tmp_path: Path) -> None:
    def fit(network: SmallClassifier, data: Digits, max_steps: int = 2) -> None:
        trainer(tmp_path, max_steps=max_steps).fit(ClassifierModule(network), data)

    right = SmallClassifier([1, 8, 8], num_classes=10, widths=[8])
    with pytest.raises(ValueError, match=r"the data has shape \(1, 8, 8\), the SmallClassifier expects \(3, 8, 8\)"):
        fit(SmallClassifier([3, 8, 8], num_classes=10), Digits())
    with pytest.raises(ValueError, match="the data has 10 classes, the classifier 9"):
        fit(SmallClassifier([1, 8, 8], num_classes=9), Digits())
    with pytest.raises(ValueError, match=r"fixed number of steps: set trainer.max_steps"):
        fit(right, Digits(), max_steps=-1)
    with pytest.raises(ValueError, match="learns from labels, but this data has none"):
        fit(right, Unlabeled())
    for options in ({"label_smoothing": 1.0}, {"augment": -1}):
        with pytest.raises(ValueError, match="needs 0 <= label_smoothing < 1 and augment >= 0"):
            ClassifierModule(right, **options)


def test_classifier_draws_no_samples() -> None:
    assert [module().sample_sets(stage) for stage in ("fit", "validate", "test", "predict")] == [[]] * 4


def shift(x: Tensor, down: int, right: int) -> Tensor:
    """Return one image (C, H, W), shifted; border pixels fill the gap."""
    _, height, width = x.shape
    rows = [min(max(i - down, 0), height - 1) for i in range(height)]
    columns = [min(max(j - right, 0), width - 1) for j in range(width)]
    return x[:, rows][:, :, columns]


def test_shifts_reach_every_offset_and_nothing_else(generator: torch.Generator) -> None:
    x = torch.rand(1, 2, 5, 4, generator=generator)
    moved = random_shift(x.expand(200, -1, -1, -1), 1, generator)
    assert moved.shape == (200, 2, 5, 4)
    expected = [shift(x[0], down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    hits = torch.stack([torch.stack([torch.equal(one, m) * torch.ones(()) for m in moved]) for one in expected])
    assert (hits.sum(0) == 1).all() and (hits.sum(1) >= 5).all()
    assert torch.equal(random_shift(x, 0, generator), x)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (4, 5, 9)])
def test_network_shapes_and_recipe(shape: tuple[int, int, int]) -> None:
    network = SmallClassifier(shape, num_classes=7, widths=[8, 16, 24], num_features=64)
    x = torch.rand(2, *shape) * 2 - 1
    assert network.features(x).shape == (2, 64) and network(x).shape == (2, 7)
    assert torch.equal(network.head(network.features(x)), network(x))
    assert network.recipe["init_args"] == {
        "data_shape": list(shape), "num_classes": 7, "widths": [8, 16, 24], "num_features": 64
    }  # fmt: skip


def test_invalid_networks_are_rejected() -> None:
    with pytest.raises(ValueError, match="positive multiples of 8, got \\[12\\]"):
        SmallClassifier([1, 8, 8], num_classes=2, widths=[12])
    with pytest.raises(ValueError, match="4 blocks halve 4x9 pixels down to nothing"):
        SmallClassifier([1, 4, 9], num_classes=2, widths=[8, 8, 8, 8])
    with pytest.raises(ValueError, match=r"data_shape \(C, H, W\) and num_classes >= 2, got \(2,\) and 2"):
        SmallClassifier([2], num_classes=2)
    with pytest.raises(ValueError, match=r"num_classes >= 2, got \(1, 8, 8\) and 0"):
        SmallClassifier([1, 8, 8], num_classes=0)


def test_reports_nothing_without_held_out_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = module()
    data = Digits(batch_size=8)
    trainer(tmp_path, max_steps=1).fit(learner, data)
    reported: list[Any] = []
    monkeypatch.setattr(learner, "log_dict", lambda *args, **options: reported.append(args))
    learner.on_validation_epoch_start()
    learner.on_validation_epoch_end()
    assert not reported
    learner.on_validation_epoch_start()
    x, labels = data.heldout().take(torch.arange(8))
    learner.validation_step(Batch(data.encode(x), labels), 0)
    learner.on_validation_epoch_end()
    assert len(reported) == 1
