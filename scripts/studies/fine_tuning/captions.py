"""Shards of small images with captions, the names of their classes, and the embeddings of these."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from webdataset import TarWriter

from datamodules import Shards
from datamodules.digit_captions import embed_spelling
from lightning_guide.utils.files import atomic

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PAIR, TARGET = (0, 1), 3  # the classes of fine-tuning, and that of the reward
CHANNELS, LENGTH = 32, max(map(len, NAMES))
RECORDS = 5000  # in a shard


def write_prompts(path: Path, classes: Sequence[int]) -> None:
    """Write the embeddings of the names of `classes` as prompts, `path`.npy, and their texts, `path`.json."""
    names = [NAMES[each] for each in classes]
    with atomic(path.with_suffix(".npy")) as temporary, temporary.open("wb") as file:
        np.save(file, embed_spelling(names, channels=CHANNELS, length=LENGTH).numpy())
    path.with_suffix(".json").write_text(json.dumps({"prompts": names}), encoding="utf-8")


def write_captioned(
    images: Shards, folder: Path, classes: Sequence[int] = range(len(NAMES)), *, per_class: int
) -> None:
    """Write the training images of `classes` to `folder`, with the name of the class as caption and its embedding.

    A record is `KEY.png`, `KEY.txt` and `KEY.tokens.npy`. `per_class` keeps the first images of each class alone.
    """
    chosen = images.training().take(torch.arange(len(images.training())))
    labels = chosen.condition
    assert labels is not None
    rows = torch.cat([(labels == each).nonzero().flatten()[:per_class] for each in classes]).sort().values
    tokens = {each: embed_spelling([NAMES[each]], channels=CHANNELS)[0].half().numpy() for each in classes}
    folder.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(rows.split(RECORDS)):
        path = folder / f"train-{number:05d}.tar"
        with atomic(path) as temporary, temporary.open("wb") as file, TarWriter(file, mtime=0) as tar:
            for row in part.tolist():
                label, png = int(labels[row]), io.BytesIO()
                Image.fromarray(chosen.x[row].permute(1, 2, 0).numpy()).save(png, "PNG")
                record = {"png": png.getvalue(), "txt": NAMES[label], "tokens.npy": tokens[label]}
                tar.write({"__key__": f"{row:08d}", **record})
