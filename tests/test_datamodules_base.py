"""Loaders inside a real trainer: types of batches, exact splits, resumption, encoding on the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import Dataset

from datamodules import DiffusionData, Digits, TensorExamples
from lightning_guide.data import Batch, SampleBatch


class Samples(Dataset[SampleBatch]):
    """`count` sample indices, as returned by a module."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> SampleBatch:
        return SampleBatch(torch.tensor(100 + index), torch.tensor(index % 10 - 1))


class Watcher(pl.LightningModule):
    """Record the batches; count images as the real module."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.register_buffer("seen", torch.tensor(0))
        self.batches: dict[str, list[Any]] = {"train": [], "val": [], "test": [], "predict": []}
        self.stages: list[str] = []

    @property
    def images_seen(self) -> int:
        return int(self.seen)

    def sample_sets(self, stage: str) -> list[tuple[Dataset[Any], int]]:
        self.stages.append(stage)
        return [(Samples(7), 2), (Samples(1), 5)]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        self.batches["train"].append(batch)
        return self.weight * batch.x.mean()

    def on_before_zero_grad(self, optimizer: Any) -> None:
        self.seen += 2 * 32  # two micro-steps

    def validation_step(self, batch: Any, index: int, dataloader_idx: int = 0) -> None:
        self.batches["val"].append((dataloader_idx, batch))

    def test_step(self, batch: Any, index: int, dataloader_idx: int = 0) -> None:
        self.batches["test"].append((dataloader_idx, batch))

    def predict_step(self, batch: Any, index: int, dataloader_idx: int = 0) -> None:
        self.batches["predict"].append((dataloader_idx, batch))


def make_trainer(folder: Path, **arguments: Any) -> pl.Trainer:
    """A small quiet trainer on the CPU."""
    return pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing="callbacks" in arguments,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        accumulate_grad_batches=2,
        max_epochs=-1,
        **arguments,
    )


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # the resumed run does not save
def test_fit_is_one_endless_epoch_and_resumes_at_its_position(tmp_path: Path) -> None:
    """1,437 images, batches of 32, 60 steps of two micro-steps, past the end of a pass, resumed at step 25."""
    full, second = Watcher(), Watcher()
    save = pl.callbacks.ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=25, save_top_k=-1)
    trainer = make_trainer(tmp_path, max_steps=60, limit_val_batches=0, callbacks=[save])
    trainer.fit(full, Digits(batch_size=32))
    resumed = make_trainer(tmp_path, max_steps=60, limit_val_batches=0, callbacks=[])
    resumed.fit(second, Digits(batch_size=32, num_workers=2), ckpt_path=str(tmp_path / "step=25.ckpt"))
    assert trainer.current_epoch == resumed.current_epoch == 1  # Lightning counts the epoch as done at max_steps
    assert len(full.batches["train"]) == 120
    for one, other in zip(full.batches["train"][50:], second.batches["train"], strict=True):
        assert type(one) is Batch and one.x.shape == (32, 1, 8, 8) and one.condition.dtype == torch.int64
        assert torch.equal(one.x, other.x) and torch.equal(one.condition, other.condition)
    assert full.batches["train"][0].x.dtype == torch.float32
    assert full.batches["train"][0].x.min() == -1 and full.batches["train"][0].x.max() == 1


@pytest.mark.filterwarnings("ignore:predict returned None")  # by Watcher
def test_evaluation_loaders(tmp_path: Path) -> None:
    """Held-out batches first, then each sample set; sample sets only for test and predict."""
    module, data = Watcher(), Digits(batch_size=100)
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.validate(module, data, verbose=False)
    trainer.test(module, data, verbose=False)
    trainer.predict(module, data)
    assert module.stages == ["validate", "test", "predict"]
    heldout = [batch for loader, batch in module.batches["val"] if loader == 0]
    assert [len(batch.x) for batch in heldout] == [100, 100, 100, 60]
    assert all(type(batch) is Batch and batch.x.dtype == torch.float32 for batch in heldout)
    assert torch.equal(data.decode(torch.cat([batch.x for batch in heldout])), data.heldout().x)
    for stage, first in (("val", 1), ("test", 0), ("predict", 0)):
        sets = [[batch for loader, batch in module.batches[stage] if loader == number] for number in (first, first + 1)]
        assert all(type(batch) is SampleBatch for batch in sets[0] + sets[1])
        assert [batch.index.tolist() for batch in sets[0]] == [[100, 101], [102, 103], [104, 105], [106]]
        assert [batch.condition.tolist() for batch in sets[1]] == [[-1]]
        assert sets[0][0].index.dtype == sets[0][0].condition.dtype == torch.int64


def test_evaluation_split_over_two_processes() -> None:
    """Uneven counts: no padding, no loss; a rank may get no batch."""
    from types import SimpleNamespace

    def loaders(rank: int) -> list[Any]:
        data = Digits(batch_size=50)
        data.trainer = SimpleNamespace(
            global_rank=rank,
            world_size=2,
            state=SimpleNamespace(fn="fit"),
            lightning_module=Watcher(),
            _accelerator_connector=SimpleNamespace(use_distributed_sampler=False),
        )
        return data.val_dataloader()

    ranks = [loaders(rank) for rank in range(2)]
    indices = [[batch.index.tolist() for batch in rank[1]] for rank in ranks]
    assert indices == [[[100, 102], [104, 106]], [[101, 103], [105]]]
    assert [[batch.index.tolist() for batch in rank[2]] for rank in ranks] == [[[100]], []]
    labels = [torch.cat([batch.condition for batch in rank[0]]) for rank in ranks]
    assert torch.equal(torch.stack(labels, 1).flatten(), Digits().heldout().labels)


def test_without_trainer_is_process_zero_of_one() -> None:
    """Loaders for scripts and notebooks."""
    data = Digits(batch_size=10)
    assert len(next(iter(data.train_dataloader())).x) == 10
    assert len(data.val_dataloader()) == 1 and data.test_dataloader() == data.predict_dataloader() == []


def test_reference_is_the_training_set_and_repeats() -> None:
    """In stored form, complete, identical when iterated twice."""
    data = Digits(batch_size=10, part="second")
    reference = data.reference(torch.device("cpu"))
    for _ in range(2):
        x, labels = (torch.cat(parts) for parts in zip(*reference, strict=True))
        assert torch.equal(x, data.training().x) and torch.equal(labels, data.training().labels)


def test_encode_and_decode_are_inverse_on_every_byte() -> None:
    """x / 127.5 - 1 and back, clipped."""
    data: DiffusionData = Digits()
    stored = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    assert torch.equal(data.decode(data.encode(stored)), stored)
    assert data.decode(torch.tensor([-9.0, 9.0, float("inf")])).tolist() == [0, 255, 255]


def test_empty_examples_and_label_mismatch_are_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        TensorExamples(torch.zeros(0, 1))
    with pytest.raises(ValueError, match="one for each element"):
        TensorExamples(torch.zeros(3, 1), torch.zeros(2, dtype=torch.int64))
