"""Interruptible writing of WebDataset shards `NAME-00000.tar`, ... and their inventory `NAME.json`."""

from __future__ import annotations

import io
import operator
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from webdataset import TarWriter

from datamodules.storage.image_codec import UndecodableError, from_array, from_pil, shrink
from datamodules.storage.shard_classes import check_same_classes, other_classes
from datamodules.storage.tar_index import IMAGES, index_shard
from datamodules.stream import epoch_order
from lightning_guide.utils.files import atomic, remove_temporary
from lightning_guide.utils.resume import ResumableFolder, read_record
from lightning_guide.utils.terminal import Progress

__all__ = ["is_complete", "write_shards"]


def write_shards(
    source: Sequence[Any] | Iterable[Any],
    folder: str | Path,
    *,
    name: str = "train",
    size: int | None = None,
    records_per_shard: int = 5000,
    shuffle_seed: int | None = 0,
    quality: int | None = None,
) -> dict[str, Any]:
    """Write (image, label) pairs as KEY.png (or .jpg) and KEY.cls, KEY being the number in the source.

    An image is a PIL image, a uint8 array (H, W) or (H, W, C), or a uint8 tensor (C, H, W) with C = 1 or 3; it is
    stored as 8-bit RGB. A source can have the optional attribute `classes` and methods `name(index)` of an image and
    `state()`, a text that changes with the images: shards of other images are not kept. A source with `__len__` and
    `__getitem__` is read at random, one image at a time; any other iterable is read into memory first. A shard appears
    under its name only when it is complete. Complete shards of an interrupted conversion are kept. Corrupt images are
    counted and left out. Returns the inventory, which is also in `NAME.json`: settings, classes, records, counts (per
    class), size ([H, W], None if they differ), corrupt, shards.

    Raises:
        ValueError: for an empty source, a label that is not a class number, an unusable image or argument, or a folder
            that holds a conversion with other settings under this name, or shards of other classes.
    """
    if records_per_shard < 1:
        raise ValueError(f"records_per_shard is {records_per_shard}; expected at least 1")
    if quality is not None and not 1 <= quality <= 100:
        raise ValueError(f"quality is {quality}; expected 1 to 100 for JPEG, or None for PNG")
    classes = getattr(source, "classes", None)
    items: Any = source if hasattr(source, "__len__") and hasattr(source, "__getitem__") else list(source)
    if not len(items):
        raise ValueError("the source holds no images; expected at least one (image, label)")
    settings = {
        "source_records": len(items),
        "size": size,
        "records_per_shard": records_per_shard,
        "shuffle_seed": shuffle_seed,
        "quality": quality,
        "classes": None if classes is None else [str(label) for label in classes],
    }
    path = Path(folder).expanduser() / f"{name}.json"
    if hasattr(source, "state") and not _made_before_states(path):
        settings["source"] = source.state()
    others = other_classes(path.parent, name)
    if classes is not None and others is not None:
        check_same_classes(f"the source of {name}", [str(label) for label in classes], str(folder), others)
    alternative = "another folder, or another name"
    inventory = ResumableFolder(path, settings, results=f"{name}-*.tar", alternative=alternative)
    with inventory.lock():
        remove_temporary(path.parent, f"{name}-*.tar")
        shards = inventory.read().get("shards", {})
        inventory.write({"shards": shards}, durable=False)
        indices = list(range(len(items))) if shuffle_seed is None else epoch_order(shuffle_seed, 0, len(items)).tolist()
        with Progress(name, len(items), unit="images") as bar:
            for number, first in enumerate(range(0, len(items), records_per_shard)):
                chosen = indices[first : first + records_per_shard]
                shard = path.with_name(f"{name}-{number:05d}.tar")
                if not is_complete(shard, shards.get(shard.name)):
                    shards[shard.name] = _write_shard(shard, items, chosen, size=size, quality=quality, bar=bar)
                    inventory.write({"shards": shards}, durable=False)
                else:
                    bar.skip(len(chosen))
        totals = _totals(shards, classes)
        inventory.write({**totals, "shards": shards}, durable=False)
    return {"settings": settings, **totals, "shards": shards}


def _made_before_states(path: Path) -> bool:
    """Return whether an inventory was written by a version that did not record the state of the source."""
    return path.is_file() and "source" not in read_record(path)[0]


def _write_shard(
    path: Path, items: Any, indices: list[int], *, size: int | None, quality: int | None, bar: Progress
) -> dict[str, Any]:
    """Write one shard atomically; return its entry in the inventory."""
    labels: Counter[str] = Counter()
    sizes: set[tuple[int, int]] = set()
    corrupt: list[str] = []
    with atomic(path) as temporary, temporary.open("wb") as file, TarWriter(file, mtime=0) as tar:
        for index in indices:
            try:
                x, label = _record(items, index, size)
            except UndecodableError as error:
                corrupt.append(f"{index}: {error}")
            else:
                data, extension = _encode(x, quality)
                tar.write({"__key__": f"{index:08d}", extension: data, "cls": str(label).encode()})
                labels[str(label)] += 1
                sizes.add((x.shape[1], x.shape[2]))
            bar.add()
        if not labels:
            raise ValueError(f"all {len(indices)} images meant for {path} are corrupt, first {corrupt[0]}")
    counts = dict(sorted(labels.items(), key=lambda entry: int(entry[0])))
    return {"records": labels.total(), "counts": counts, "sizes": sorted(sizes), "corrupt": corrupt}


def _record(items: Any, index: int, size: int | None) -> tuple[Tensor, int]:
    """Return image uint8 (3, H, W) and label number `index` of the source."""
    try:
        item = items[index]
    except (OSError, SyntaxError) as error:  # of PIL, in a source that opens its files itself
        raise UndecodableError(f"{type(error).__name__}: {error}") from None
    try:
        image, label = item
        if isinstance(label, bool):
            raise TypeError
        label = operator.index(label)
    except (TypeError, ValueError):
        raise ValueError(
            f"item {index} of the source is a {type(item).__name__}; expected a pair (image, class number)"
        ) from None
    classes = getattr(items, "classes", None)
    if label < 0 or (classes is not None and label >= len(classes)):
        last = f"to {len(classes) - 1}" if classes is not None else "upwards"
        raise ValueError(f"item {index} of the source has the label {label}; expected a class number from 0 {last}")
    try:
        x = _from_pil(image) if isinstance(image, Image.Image) else from_array(image)
        return (x if size is None else shrink(x, size)), label
    except UndecodableError:
        raise
    except ValueError as error:
        named = items.name(index) if hasattr(items, "name") else f"item {index} of the source"
        raise ValueError(f"{named}: {error}") from None


def _from_pil(image: Image.Image) -> Tensor:
    """Convert a PIL image, whose file may be read only now."""
    try:
        return from_pil(image)
    except Exception as error:  # PIL raises many types for damaged files
        raise UndecodableError(f"{type(error).__name__}: {error}") from None


def _encode(x: Tensor, quality: int | None) -> tuple[bytes, str]:
    """Encode an image; return the file content and its extension."""
    buffer = io.BytesIO()
    image = Image.fromarray(x.permute(1, 2, 0).numpy())
    if quality is None:
        image.save(buffer, "PNG")
        return buffer.getvalue(), "png"
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue(), "jpg"


def is_complete(path: Path, entry: dict[str, Any] | None, *, extensions: Sequence[str] = IMAGES) -> bool:
    """Return whether a shard exists with all records of its inventory entry."""
    try:
        return entry is not None and len(index_shard(path, num_classes=0, extensions=extensions)) == entry["records"]
    except ValueError:
        return False


def _totals(shards: dict[str, Any], classes: Any) -> dict[str, Any]:
    """Return the summary of all shards for the inventory."""
    counts: Counter[str] = Counter()
    for entry in shards.values():
        counts.update(entry["counts"])
    sizes = {tuple(size) for entry in shards.values() for size in entry["sizes"]}
    number = max(int(label) for label in counts) + 1
    names = [str(index) for index in range(number)] if classes is None else [str(name) for name in classes]
    return {
        "classes": names,
        "records": counts.total(),
        "counts": [counts[str(label)] for label in range(max(number, len(names)))],
        "size": list(sizes.pop()) if len(sizes) == 1 else None,
        "corrupt": [name for entry in shards.values() for name in entry["corrupt"]],
    }
