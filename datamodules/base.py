"""Base datamodule: an endless training stream, exactly split evaluation loaders, encoding and decoding.

Several processes need `Trainer(use_distributed_sampler=False)`: the datamodule itself splits the data by rank.
"""

from __future__ import annotations

import signal
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, cast

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.examples import Examples, Slices, Visits
from datamodules.prompts import PromptFile
from datamodules.stream import Stream, split_evenly
from lightning_guide.conditioning import check_labels
from lightning_guide.data import Batch, Prompts, SampleBatch, SampleSource
from lightning_guide.runs.class_names import check_class_names, read_class_names, write_class_names
from lightning_guide.seeds import check_seed

__all__ = ["DiffusionData", "OnDevice"]


class DiffusionData(pl.LightningDataModule, ABC):
    """Base of datamodules. A subclass defines `training`, `heldout`, `encode`, `decode`, `data_shape`, `num_classes`.

    Loaders:

    - train: endless, in one epoch, `Batch` at the stream positions that follow `images_seen` of the module; exact
      for any number of workers, processes and resumptions (`stream.Stream`).
    - validation: the held-out `Batch`es, then one loader of `SampleBatch` for each sample set of the module; test
      and predict: the sample sets alone. Process r of W reads elements range(r, n, W), unpadded.

    Batches are loaded in stored form; `Batch.x` is encoded on the device. Without a trainer, the datamodule is
    process 0 of 1 at position 0.

    Modules use it as `DataInterface`; it reads `images_seen` and `sample_sets` of the module as `SampleSource`.

    Attributes:
        data_shape: shape of one x, without the batch.
        num_classes: number of labels, 0 for data without labels.
        class_names: names of the labels in their order, None if they have none.
        token_channels: C of the embeddings (L, C) of the elements, 0 for data without embeddings.
        prompt_file: npy or npz of the embeddings that condition samples (`PromptFile`).
        num_prompts: number of held-out embeddings that condition samples if there is no `prompt_file`.
    """

    data_shape: tuple[int, ...]
    num_classes: int
    class_names: list[str] | None = None
    token_channels: int = 0
    prompt_file: str | None = None
    num_prompts: int = 1000

    def __init__(self, *, batch_size: int, num_workers: int = 0, seed: int = 0) -> None:
        """Set `batch_size` per process and micro-step; `seed` determines the order of the training data.

        Raises:
            ValueError: if `batch_size` is below 1 or `num_workers` below 0.
        """
        super().__init__()
        # An exact split of fewer samples than processes leaves some processes without any.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected at least 1 (images per process and micro-step)")
        if num_workers < 0:
            raise ValueError(f"num_workers is {num_workers}; expected 0 (load in the main process) or more")
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = check_seed(seed)

    def setup(self, stage: str) -> None:
        """Compare the class names with those of the run; `fit` records them there.

        Raises:
            ValueError: naming the classes, if they differ.
        """
        if self.trainer is not None and self.class_names is not None:
            module = self.trainer.lightning_module
            evaluated = None if stage == "fit" else getattr(module, "run", None)
            run = self.trainer.default_root_dir if evaluated is None else evaluated
            check_class_names(self.class_names, read_class_names(run), of=f"the run {run}")
            if stage == "fit" and self.trainer.is_global_zero:
                write_class_names(run, self.class_names)

    @abstractmethod
    def training(self) -> Examples:
        """Return the training set in stored form."""

    @abstractmethod
    def heldout(self) -> Examples:
        """Return the held-out set in stored form."""

    @abstractmethod
    def encode(self, raw: Tensor) -> Tensor:
        """Convert stored data (B, *data_shape) to the denoiser's input, float32."""

    @abstractmethod
    def decode(self, x: Tensor) -> Tensor:
        """Invert `encode`, rounded and clipped to the stored range."""

    def stored(self, x: Tensor) -> Tensor:
        """Return samples x in the form in which training data are stored, which `encode` takes; by default decoded."""
        return self.decode(x)

    def prompts(self) -> Prompts:
        """Return the embeddings (P, L, C) that condition samples: from `prompt_file`, or of held-out elements.

        Raises:
            ValueError: if the data has no embeddings, or the file does not hold embeddings.
        """
        return self._prompts

    @cached_property
    def _prompts(self) -> Prompts:
        if not self.token_channels:
            raise ValueError(f"{type(self).__name__} has no embeddings; expected data with token_channels above 0")
        if self.prompt_file is not None:
            return PromptFile(self.prompt_file, self.token_channels)
        examples = self.heldout()
        if not len(examples):
            raise ValueError(f"{type(self).__name__} holds no embeddings to draw samples under; set prompt_file")
        embeddings = examples.take(torch.arange(min(len(examples), self.num_prompts))).condition
        assert embeddings is not None
        return embeddings

    @property
    def prompt_texts(self) -> Sequence[str] | None:
        """Texts of the prompts in their order, None if they are not known."""
        return getattr(self.prompts(), "texts", None) if self.token_channels else None

    def in_order(self, examples: Examples) -> Dataset[Batch]:
        """Return a dataset that maps a range of elements of a finite set to their batch."""
        return Slices(examples)

    def visits(self) -> Dataset[Batch]:
        """Return the endless training stream: a dataset that maps a range of stream positions to a batch."""
        return Visits(self.training(), seed=self.seed)

    def reference(self, device: torch.device) -> Iterable[Batch]:
        """Return batches of the full training set on `device`, in stored form and order, the same on every process."""
        examples = self.training()
        split = split_evenly(len(examples), 512)
        return OnDevice(self._loader(self.in_order(examples), split, self._workers(examples)), device)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return endless batches of the training stream, from the images seen by the module onwards."""
        rank, world = self._place()
        stream = Stream(self.batch_size, rank=rank, world=world, start=self._images_seen)
        return self._loader(self.visits(), stream, self.num_workers)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """Return the held-out loader, then the sample sets of `fit` or `validate`."""
        examples = self.heldout()
        rank, world = self._place()
        split = split_evenly(len(examples), self.batch_size, rank=rank, world=world)
        stage = "validate" if self.trainer is not None and self.trainer.state.fn == "validate" else "fit"
        return [self._loader(self.in_order(examples), split, self._workers(examples)), *self._sample_loaders(stage)]

    def test_dataloader(self) -> list[DataLoader[SampleBatch]]:
        """Return the sample sets of `test`."""
        return self._sample_loaders("test")

    def predict_dataloader(self) -> list[DataLoader[SampleBatch]]:
        """Return the sample sets of `predict`."""
        return self._sample_loaders("predict")

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Check the labels of a `Batch` while they are on the host, so that no network call waits for that.

        Raises:
            ValueError: if one is out of range.
        """
        labels = batch.condition if isinstance(batch, Batch) else None
        if labels is not None and not labels.is_floating_point() and self.num_classes:
            check_labels(labels, self.num_classes, batch=len(batch.x))
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Encode the x of a `Batch` on the device; a `SampleBatch` is returned unchanged."""
        return batch._replace(x=self.encode(batch.x)) if isinstance(batch, Batch) else batch

    def _sample_loaders(self, stage: str) -> list[DataLoader[SampleBatch]]:
        """Build one loader for each sample set of the module, split over processes."""
        rank, world = self._place()
        module = self._module()
        return [
            DataLoader(
                dataset,
                batch_size=batch_size,
                sampler=range(rank, len(cast(Any, dataset)), world),
                collate_fn=_collate,
                generator=torch.Generator(),
            )
            for dataset, batch_size in ([] if module is None else module.sample_sets(stage))
        ]

    def _loader(self, dataset: Dataset[Batch], batches: Iterable[range], workers: int) -> DataLoader[Batch]:
        """Build a loader for a dataset of batches."""
        return DataLoader(
            dataset,
            batch_size=None,
            sampler=batches,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=_ignore_interrupt,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # seeds the workers; the default draws from the global generator
        )

    def _workers(self, examples: Examples) -> int:
        """Number of workers for one pass over `examples`, 0 for examples in memory."""
        return 0 if examples.in_memory else self.num_workers

    def _module(self) -> SampleSource | None:
        """The module of the trainer, None without a trainer; the only access to it."""
        return None if self.trainer is None else cast(SampleSource, self.trainer.lightning_module)

    def _images_seen(self) -> int:
        """Images seen by the module over all processes, 0 without a trainer."""
        module = self._module()
        return 0 if module is None else module.images_seen

    def _place(self) -> tuple[int, int]:
        """Return (rank, number of processes); refuse a trainer that would split the data a second time."""
        if self.trainer is None:
            return 0, 1
        connector = self.trainer._accelerator_connector
        if self.trainer.world_size > 1 and connector.use_distributed_sampler:
            raise ValueError(
                f"{type(self).__name__} splits its data over the {self.trainer.world_size} processes itself; "
                "expected Trainer(use_distributed_sampler=False)"
            )
        return self.trainer.global_rank, self.trainer.world_size


class OnDevice:
    """Batches of a loader, moved to a device; can be iterated more than once."""

    def __init__(self, batches: Iterable[Batch], device: torch.device) -> None:
        self.batches = batches
        self.device = device

    def __iter__(self) -> Iterator[Batch]:
        for x, condition in self.batches:
            # waits once a batch for each, before and after training: the memory of these batches is not pinned
            yield Batch(x.to(self.device), None if condition is None else condition.to(self.device))


def _ignore_interrupt(worker: int) -> None:
    """Ignore SIGINT in workers; the trainer handles it and still needs the data of the current step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _collate(items: Sequence[tuple[Any, Any]]) -> SampleBatch:
    """Stack (index, condition) pairs into one int64 batch."""
    indices, conditions = zip(*items, strict=True)
    return SampleBatch(torch.tensor([int(i) for i in indices]), torch.tensor([int(c) for c in conditions]))
