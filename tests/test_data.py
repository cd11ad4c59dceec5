"""The two interfaces between data and modules: a datamodule with the members of `DataInterface` alone suffices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_guide.data import Batch, DataInterface, SampleBatch, SampleSource, data_of
from lightning_guide.evaluation import FrechetDistance, RawPixels
from tests.runs import CLASSES, evaluation, tiny_module, tiny_trainer


class MinimalData:
    """Noise images with the members of `DataInterface`."""

    data_shape: tuple[int, ...] = (1, 4, 4)
    num_classes = CLASSES
    token_channels = 0
    prompt_texts = None
    batch_size = 4

    def prompts(self) -> Tensor:
        raise AssertionError("a model of labels reads no prompts")

    def encode(self, raw: Tensor) -> Tensor:
        return raw.float() / 127.5 - 1

    def decode(self, x: Tensor) -> Tensor:
        return (x * 127.5 + 127.5).round().clip(0, 255).to(torch.uint8)

    def reference(self, device: torch.device) -> Iterator[Batch]:
        raw = torch.randint(256, (8, 1, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
        yield Batch(raw.to(device), torch.arange(8, device=device) % CLASSES)


def collate(rows: list[SampleBatch]) -> SampleBatch:
    index, condition = zip(*rows, strict=True)
    return SampleBatch(torch.stack(index), torch.stack(condition))


class Loaders(pl.LightningDataModule):
    """A datamodule whose other attributes are those of a `DataInterface`; it reads the module as `SampleSource`."""

    def __init__(self, data: DataInterface) -> None:
        super().__init__()
        self.allowed = data

    def __getattr__(self, name: str) -> Any:
        return getattr(self.allowed, name)

    def _batches(self, count: int) -> DataLoader[Batch]:
        batch = next(iter(self.allowed.reference(torch.device("cpu"))))
        half = Batch(self.allowed.encode(batch.x[:4]), None if batch.condition is None else batch.condition[:4])
        return DataLoader([half] * count, batch_size=None)  # type: ignore[arg-type]

    def train_dataloader(self) -> DataLoader[Batch]:
        return self._batches(2)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        return [self._batches(1), *self._samples("validate")]

    def test_dataloader(self) -> list[DataLoader[SampleBatch]]:
        return self._samples("test")

    def predict_dataloader(self) -> list[DataLoader[SampleBatch]]:
        return self._samples("predict")

    def _samples(self, stage: str) -> list[DataLoader[SampleBatch]]:
        assert self.trainer is not None
        source: SampleSource = self.trainer.lightning_module  # type: ignore[assignment]
        return [DataLoader(dataset, batch_size=size, collate_fn=collate) for dataset, size in source.sample_sets(stage)]


def test_data_interface_suffices_for_training_and_evaluation(tmp_path: Path) -> None:
    """Training, validation, test and prediction of `DiffusionModule`."""
    metrics = {"fd": FrechetDistance(RawPixels())}
    module = tiny_module(evaluations={"plain": evaluation(metrics=metrics)}, average=None, prediction=evaluation())
    data = Loaders(MinimalData())
    trainer = tiny_trainer(tmp_path, steps=2, limit_val_batches=1.0, val_check_interval=2)
    trainer.fit(module, datamodule=data)
    assert data_of(trainer) is data and module.images_seen == 8
    for run in (trainer.validate, trainer.test):
        (first, *_) = run(module, datamodule=data, verbose=False)
        assert first["plain/samples"] == 5 and first["plain/fd"] > 0
    (drawn, *_) = trainer.predict(module, datamodule=data)  # type: ignore[misc]
    assert drawn.x.dtype == torch.uint8
