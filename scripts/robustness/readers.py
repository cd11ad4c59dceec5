"""Files of every kind that the product reads, each with its real reader (`SUBJECTS`).

A value of a reader is compared with that of the whole file. `checked` names files whose bytes are covered by checksums:
for them another value is a silent acceptance. In containers (`parts`) each member must be the same, or counted among
those that are left out. Files without checksums (npy, JSON, YAML, BMP, JPEG, ...) may give another value.
"""

from __future__ import annotations

import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from datamodules import ImageFolder, Latents, Shards, write_shards
from datamodules.prompts import PromptFile
from datamodules.storage.shard_classes import shard_classes
from lightning_guide.objectives.reference import _read, load_references
from lightning_guide.optimization.round_buffers import append_record, read_records
from lightning_guide.runs.class_names import read_class_names, write_class_names
from lightning_guide.utils.files import read_yaml
from lightning_guide.utils.resume import ResumableFolder, read_record
from scripts.robustness.model_files import MODELS
from scripts.robustness.subject import LEFT_OUT, Subject, digest, make_file

__all__ = ["SUBJECTS"]

_PIXELS = np.random.default_rng(0).integers(0, 256, (24, 16, 3), dtype=np.uint8)
_CLASSES = ("ant", "bee")


def _image(kind: str, number: int = 0, **options: Any) -> bytes:
    """Encode an image; the number makes it another one."""
    image = Image.fromarray(np.roll(_PIXELS, number, 0)).convert(options.pop("mode", "RGB"))
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _make_image(folder: Path, kind: str, **options: Any) -> Path:
    path = folder / "ant" / f"a.{kind.lower()}"
    path.parent.mkdir()
    path.write_bytes(_image(kind, **options))
    return path


def _read_images(path: Path, source: Path | None = None) -> list[Any]:
    """Read a folder or an archive as training data in memory: labels and pixels."""
    place = str(source or path.parent.parent)
    data = ImageFolder(place, place, num_classes=2 if source else 1)
    examples = data.training()
    pairs = [[label, digest(x)] for x, label in (examples[i] for i in range(len(examples)))]
    return pairs + [[LEFT_OUT, LEFT_OUT]] * len(data.corrupt)


def _read_pixels(path: Path) -> list[str]:
    return [pixels for _, pixels in _read_images(path, path)]  # labels are names without a checksum


def _make_zip(folder: Path) -> Path:
    import zipfile

    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(6):
            archive.writestr(f"data/{_CLASSES[number % 2]}/{number}.png", _image("PNG", number))
    return folder / "a.zip"


def _make_tar(folder: Path) -> Path:
    import tarfile

    with tarfile.open(folder / "a.tar", "w") as tar:
        for number in range(6):
            data = _image("PNG", number)
            info = tarfile.TarInfo(f"{_CLASSES[number % 2]}/{number}.png")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return folder / "a.tar"


def _make_listing(folder: Path) -> Path:
    for number in range(4):
        (folder / f"{number}.png").write_bytes(_image("PNG", number))
    rows = [[f"{number}.png", number % 2] for number in range(4)]
    (folder / "dataset.json").write_text(json.dumps({"labels": rows}))
    return folder / "dataset.json"


def _make_shard(folder: Path) -> Path:
    write_shards([(np.roll(_PIXELS, number, 0), number % 2) for number in range(4)], folder)
    return folder / "train-00000.tar"


def _read_shard(path: Path) -> list[Any]:
    data = Shards(str(path), str(path), num_classes=2)
    examples = data.training()
    pixels = [digest(examples[i][0]) for i in range(len(examples))]  # labels are text without a checksum
    return pixels + [LEFT_OUT] * len(data.corrupt)


def _npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _make_latents(folder: Path) -> Path:
    from webdataset import TarWriter

    with (folder / "z-00000.tar").open("wb") as file, TarWriter(file, mtime=0) as tar:
        for number in range(3):
            x = np.random.default_rng(number).random((8, 2, 2), dtype=np.float32)
            tar.write({"__key__": f"{number:04d}", "npy": _npy(x), "cls": b"0"})
    return folder / "z-00000.tar"


def _read_latents(path: Path) -> list[str]:
    data = Latents(str(path), str(path)).training()
    return [digest(data[i][0]) for i in range(len(data))]


def _make_npz(folder: Path) -> Path:
    np.savez_compressed(folder / "a.npz", tokens=np.random.default_rng(0).random((3, 2, 4)), mask=np.ones((3, 2)))
    return folder / "a.npz"


def _read_prompts(path: Path) -> str:
    file = PromptFile(str(path), 4)
    return digest(file[torch.arange(len(file))])


def _read_references(path: Path) -> str:
    _read.cache_clear()
    return digest(load_references(str(path), torch.zeros(1, 2, 3)))


def _make_record(folder: Path) -> Path:
    record = ResumableFolder(folder / "a.json", {"size": 8, "names": ["a", "b"]}, results="*.tar")
    record.write({"shards": {"a-00000.tar": {"records": 4}}}, durable=False)
    return folder / "a.json"


def _make_inventory(folder: Path) -> Path:
    _make_shard(folder)
    return folder / "train.json"


def _make_history(folder: Path) -> Path:
    for number in range(3):
        append_record(folder, {"objective": number / 3}, first=not number)
    return folder / "rounds" / "history.jsonl"


def _make_class_names(folder: Path) -> Path:
    write_class_names(folder, _CLASSES)
    return folder / "classes.json"


def _make_config(folder: Path) -> Path:
    content = read_yaml(Path(__file__).parents[2] / "configs" / "digits" / "main.yaml")
    return make_file(folder, "a.yaml", yaml.safe_dump(content).encode())


SUBJECTS: dict[str, Subject] = {
    "image png": Subject(partial(_make_image, kind="PNG"), _read_images, checked=True),
    "image png palette": Subject(partial(_make_image, kind="PNG", mode="P"), _read_images, checked=True),
    "image jpeg": Subject(partial(_make_image, kind="JPEG"), _read_images),
    "image jpeg cmyk": Subject(partial(_make_image, kind="JPEG", mode="CMYK"), _read_images),
    "image jpeg progressive": Subject(partial(_make_image, kind="JPEG", progressive=True), _read_images),
    "image webp": Subject(partial(_make_image, kind="WEBP"), _read_images),
    "image webp lossless": Subject(partial(_make_image, kind="WEBP", lossless=True), _read_images),
    "image gif": Subject(partial(_make_image, kind="GIF"), _read_images),
    "image bmp": Subject(partial(_make_image, kind="BMP"), _read_images),
    "image tiff": Subject(partial(_make_image, kind="TIFF"), _read_images),
    "image tiff lzw": Subject(partial(_make_image, kind="TIFF", compression="tiff_lzw"), _read_images),
    "image tiff deflate": Subject(partial(_make_image, kind="TIFF", compression="tiff_adobe_deflate"), _read_images),
    "image ppm": Subject(partial(_make_image, kind="PPM"), _read_images),
    "zip of images": Subject(_make_zip, lambda path: _read_images(path, path), parts=True),
    "tar of images": Subject(_make_tar, _read_pixels, parts=True),
    "dataset.json": Subject(_make_listing, lambda path: _read_images(path, path.parent)),
    "shard of images": Subject(_make_shard, _read_shard, parts=True),
    "shard of latents": Subject(_make_latents, _read_latents),
    "inventory of shards": Subject(_make_inventory, lambda path: shard_classes([path.with_name("train-00000.tar")])),
    "prompts npy": Subject(
        lambda folder: make_file(folder, "a.npy", _npy(np.ones((3, 2, 4)))),
        _read_prompts,
    ),
    "prompts npz": Subject(_make_npz, _read_prompts, checked=True),
    "references npy": Subject(lambda folder: make_file(folder, "a.npy", _npy(np.ones((5, 2, 3)))), _read_references),
    **MODELS,
    "record json": Subject(_make_record, read_record),
    "history jsonl": Subject(_make_history, lambda path: read_records(path.parent.parent, 3)),
    "class names json": Subject(_make_class_names, lambda path: read_class_names(path.parent)),
    "config yaml": Subject(_make_config, read_yaml),
}
