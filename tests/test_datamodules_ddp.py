"""Loaders in a trainer of two processes: the same order of the data, an exact split, empty shares."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from datamodules import Digits

SCRIPT = """
import sys
import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy
from datamodules import Digits


class Watcher(pl.LightningModule):
    images_seen = 0

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.train_labels, self.heldout, self.drawn = [], [], {1: [], 2: []}

    def sample_sets(self, stage):
        return [([(i, -1) for i in range(7)], 2), ([(0, -1)], 5)]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch, index):
        self.train_labels.append(batch.condition)
        return self.weight * batch.x.mean()

    def validation_step(self, batch, index, dataloader_idx):
        if dataloader_idx:
            self.drawn[dataloader_idx] += batch.index.tolist()
        else:
            self.heldout += batch.condition.tolist()


if __name__ == "__main__":
    module = Watcher()
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy=DDPStrategy(broadcast_buffers=False), logger=False,
        enable_progress_bar=False, enable_checkpointing=False, use_distributed_sampler=False, max_epochs=-1,
        max_steps=4, num_sanity_val_steps=0, check_val_every_n_epoch=None, val_check_interval=4,
    )
    trainer.fit(module, Digits(batch_size=32, num_workers=1))
    found = {"train": torch.stack(module.train_labels), "heldout": module.heldout, "drawn": module.drawn}
    torch.save(found, f"{sys.argv[1]}/{trainer.global_rank}.pt")
"""


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    """Rank 1 gets no part of the one-element sample set; all other data interleaves to that of one process."""
    script = tmp_path / "fit.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True, env=environment, timeout=300)
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    single = itertools.islice(iter(Digits(batch_size=64).train_dataloader()), 4)
    assert torch.equal(torch.cat([one["train"], other["train"]], 1), torch.stack([b.condition for b in single]))
    assert one["heldout"] == Digits().heldout().labels[0::2].tolist()
    assert other["heldout"] == Digits().heldout().labels[1::2].tolist()
    assert one["drawn"] == {1: [0, 2, 4, 6], 2: [0]} and other["drawn"] == {1: [1, 3, 5], 2: []}
