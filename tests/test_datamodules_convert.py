"""Conversion to shards: exact, interruptible, with a report of corrupt images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from jsonargparse import auto_cli
from PIL import Image

from datamodules import Shards, write_shards
from datamodules.commands.convert import convert
from tests.image_files import exif


def pixels(number: int, side: int = 8) -> np.ndarray:
    """The image of item `number`."""
    return np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder of three classes with 2, 3 and 4 images."""
    number = 0
    for label, name in enumerate(("ape", "bee", "cow")):
        (tmp_path / "source" / name).mkdir(parents=True)
        for _ in range(label + 2):
            Image.fromarray(pixels(number)).save(tmp_path / "source" / name / f"{number}.png")
            number += 1
    return tmp_path / "source"


def content(folder: Path, name: str = "train", num_classes: int = 3) -> set[tuple[bytes, int]]:
    """All (image, label) pairs of the shards in a folder."""
    data = Shards(f"{folder}/{name}-*.tar", f"{folder}/{name}-*.tar", num_classes=num_classes)
    return {(x.numpy().tobytes(), label) for x, label in (data.training()[i] for i in range(len(data.training())))}


def expected(labels: list[int]) -> set[tuple[bytes, int]]:
    """The pairs of items 0, 1, ... with these labels."""
    return {(pixels(i).transpose(2, 0, 1).tobytes(), label) for i, label in enumerate(labels)}


LABELS = [0, 0, 1, 1, 1, 2, 2, 2, 2]


class Items:
    """A random-access source that records what is read and fails after `fail_after` reads."""

    classes = ["ape", "bee", "cow"]

    def __init__(self, *, fail_after: int = 10**9) -> None:
        self.read: list[int] = []
        self.fail_after = fail_after

    def __len__(self) -> int:
        return len(LABELS)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if len(self.read) == self.fail_after:
            raise KeyboardInterrupt
        self.read.append(index)
        return pixels(index), LABELS[index]


def test_class_folder_reads_back_pixel_exact(source: Path, tmp_path: Path) -> None:
    """By the command as called by the command line."""
    out = tmp_path / "out"
    auto_cli(convert, args=[str(source), str(out), "--records_per_shard=4"])
    assert sorted(path.name for path in out.iterdir()) == [f"train-0000{i}.tar" for i in range(3)] + ["train.json"]
    assert content(out) == expected(LABELS)
    inventory = json.loads((out / "train.json").read_text())
    assert inventory["classes"] == ["ape", "bee", "cow"] and inventory["counts"] == [2, 3, 4]
    assert inventory["records"] == 9 and inventory["size"] == [8, 8] and inventory["corrupt"] == []
    assert [entry["records"] for entry in inventory["shards"].values()] == [4, 4, 1]


def test_two_conversions_give_the_same_bytes(source: Path, tmp_path: Path) -> None:
    """The order depends on the seed alone; without a seed it is that of the source."""
    for folder, seed in (("a", 0), ("b", 0), ("c", 1), ("d", None)):
        convert(str(source), str(tmp_path / folder), shuffle_seed=seed)
    a, b, c, d = ((tmp_path / folder / "train-00000.tar").read_bytes() for folder in "abcd")
    assert a == b != c
    assert a != d and d.index(b"00000000.png") < d.index(b"00000001.png") < d.index(b"00000008.png")


def test_interrupted_conversion_resumes(tmp_path: Path) -> None:
    """Complete shards are kept, no partial file is visible, the result equals that of one run."""
    with pytest.raises(KeyboardInterrupt):
        write_shards(Items(fail_after=6), tmp_path / "a", records_per_shard=4)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["train-00000.tar", "train.json"]
    items = Items()
    write_shards(items, tmp_path / "a", records_per_shard=4)
    assert len(items.read) == 5
    write_shards(Items(), tmp_path / "b", records_per_shard=4)
    for path in (tmp_path / "b").iterdir():
        assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes()


def test_damaged_shard_is_written_again(tmp_path: Path) -> None:
    """Existing shards are verified by their number of records."""
    write_shards(Items(), tmp_path, records_per_shard=4)
    whole = (tmp_path / "train-00001.tar").read_bytes()
    (tmp_path / "train-00001.tar").write_bytes(whole[:1000])
    items = Items()
    write_shards(items, tmp_path, records_per_shard=4)
    assert len(items.read) == 4 and (tmp_path / "train-00001.tar").read_bytes() == whole


def test_torchvision_dataset(tmp_path: Path) -> None:
    """PIL images and integer labels from torchvision; the name is the split."""
    fake = torchvision.datasets.FakeData(6, (3, 8, 8), num_classes=3)
    inventory = write_shards(fake, tmp_path / "fake")
    items = [fake[index] for index in range(6)]
    pairs = {(np.asarray(image).transpose(2, 0, 1).tobytes(), int(label)) for image, label in items}
    assert content(tmp_path / "fake") == pairs and inventory["records"] == 6
    for source, message in (
        ("torchvision:CIFAR", "expected torchvision:NAME:ROOT"),
        (f"torchvision:CIFAR:{tmp_path}", "no dataset 'CIFAR'; expected one like .*CIFAR10"),
        (f"torchvision:CIFAR10:{tmp_path}", "cannot be opened in .*--download true"),
    ):
        with pytest.raises(ValueError, match=message):
            convert(source, str(tmp_path / "y"))
    with pytest.raises(ValueError, match="has the splits train and test; got 'heldout'"):
        convert(f"torchvision:CIFAR10:{tmp_path}", str(tmp_path / "y"), name="heldout")


def test_iterables_sizes_and_jpeg(tmp_path: Path) -> None:
    """A generator of tensors, shrunk and stored as JPEG, read back close to the shrunk images."""
    smooth = torch.arange(16, dtype=torch.uint8).mul(8).expand(3, 16, 16)
    inventory = write_shards(((smooth, label) for label in (0, 3)), tmp_path, size=8, quality=95)
    assert inventory["classes"] == ["0", "1", "2", "3"] and inventory["counts"] == [1, 0, 0, 1]
    data = Shards(f"{tmp_path}/train-*.tar", f"{tmp_path}/train-*.tar", num_classes=4)
    shrunk = smooth.float().reshape(3, 8, 2, 8, 2).mean((2, 4))
    assert (data.training()[0][0] - shrunk).abs().max() < 6
    mixed = write_shards([(pixels(0), 0), (pixels(0, 6), 0)], tmp_path, name="mixed")
    assert mixed["size"] is None


def test_corrupt_images_are_counted_and_named(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are left out and listed in the inventory, also when the command runs again."""
    (source / "bee" / "3.png").write_bytes(b"not an image")
    for _ in range(2):
        convert(str(source), str(tmp_path / "out"), records_per_shard=4)
        assert "8 images of 3 classes in 3 shards" in (printed := capsys.readouterr().out)
        assert "1 corrupt image left out" in printed
    inventory = json.loads((tmp_path / "out" / "train.json").read_text())
    assert inventory["counts"] == [2, 2, 4] and "bee/3.png" in inventory["corrupt"][0]
    assert content(tmp_path / "out") == expected(LABELS) - {(pixels(3).transpose(2, 0, 1).tobytes(), 1)}


def test_images_of_other_libraries_follow_the_same_rules(tmp_path: Path) -> None:
    """Images that PIL opens or that torchvision reads: shown as by viewers, or counted among the corrupt."""
    Image.fromarray(pixels(0)).save(tmp_path / "turned.png", exif=exif(3))
    Image.fromarray(pixels(1)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:100])
    wide = Image.fromarray(np.full((8, 8), 70000, dtype=np.int32))
    items = [(Image.open(tmp_path / "turned.png"), 0), (Image.open(tmp_path / "cut.png"), 0), (wide, 0)]
    inventory = write_shards(items, tmp_path / "out", shuffle_seed=None)
    assert content(tmp_path / "out", num_classes=1) == {(pixels(0)[::-1, ::-1].transpose(2, 0, 1).tobytes(), 0)}
    assert [each[:12] for each in inventory["corrupt"]] == ["1: OSError: ", "2: ValueErro"]


def test_other_settings_and_foreign_shards_are_refused(tmp_path: Path) -> None:
    """Existing data is not overwritten."""
    write_shards(Items(), tmp_path, records_per_shard=4)
    with pytest.raises(ValueError, match="made with other settings: records_per_shard was 4 and is now 5;"):
        write_shards(Items(), tmp_path, records_per_shard=5)
    (tmp_path / "train.json").write_text("{}")
    with pytest.raises(ValueError, match="train.json does not record 'settings' of earlier results"):
        write_shards(Items(), tmp_path, records_per_shard=4)
    (tmp_path / "train.json").unlink()
    with pytest.raises(ValueError, match="train-00000.tar exists without train.json"):
        write_shards(Items(), tmp_path, records_per_shard=4)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "holds no images"),
        ([3], "item 0 of the source is a int; expected a pair"),
        ([(pixels(0), "cat")], "item 0 of the source is a tuple; expected a pair .image, class number"),
        ([(pixels(0), True)], "item 0 of the source is a tuple; expected a pair .image, class number"),
        ([(pixels(0), 0.7)], "item 0 of the source is a tuple; expected a pair .image, class number"),
        ([(np.zeros((0, 4, 3), dtype=np.uint8), 0)], "item 0 of the source: the image is a ndarray .* some pixels"),
        ([(pixels(0), -1)], "label -1; expected a class number from 0 upwards"),
        ([(pixels(0).astype(float), 0)], "item 0 of the source: the image is a ndarray of float64"),
    ],
)
def test_bad_items(tmp_path: Path, items: list[Any], message: str) -> None:
    """One sentence each; no shard appears."""
    with pytest.raises(ValueError, match=message):
        write_shards(items, tmp_path)
    assert not list(tmp_path.glob("*.tar")) and not list(tmp_path.glob(".*"))


def test_bad_sources_and_arguments(source: Path, tmp_path: Path) -> None:
    """Missing and empty folders, empty classes, numbers out of range."""
    (source / "dog").mkdir()
    for given, message in (
        (source, "class folder dog of .* holds no images"),
        (source / "bee", "has no label; expected a class folder"),
        (source / "none", "none does not exist; expected a folder of images"),
    ):
        with pytest.raises(ValueError, match=message):
            convert(str(given), str(tmp_path / "out"))
    (source / "dog").rmdir()
    with pytest.raises(ValueError, match=r"\w+/\d.png in .*: 8x8 pixels cannot be shrunk to 9x9"):
        convert(str(source), str(tmp_path / "out"), size=9)
    with pytest.raises(ValueError, match="quality is 0"):
        write_shards([(pixels(0), 0)], tmp_path / "out", quality=0)
    with pytest.raises(ValueError, match="records_per_shard is 0"):
        write_shards([(pixels(0), 0)], tmp_path / "out", records_per_shard=0)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_shards_of_images_that_were_corrected_since_are_refused(kind: str, tmp_path: Path) -> None:
    """The same command would keep the shards of the old images and say that all is well."""
    source, shards = tmp_path / "source", tmp_path / "shards"
    for name, color in (("a", 10), ("b", 200)):
        (source / name).mkdir(parents=True)
        Image.new("RGB", (4, 4), (color, 0, 0)).save(source / name / "0.png")

    def place() -> str:
        if kind == "folder":
            return str(source)
        shutil.make_archive(str(tmp_path / "images"), "zip", source)
        return str(tmp_path / "images.zip")

    first = place()
    convert(first, str(shards))
    written = (shards / "train-00000.tar").read_bytes()
    convert(first, str(shards))  # nothing changed: nothing to do
    assert (shards / "train-00000.tar").read_bytes() == written
    Image.new("RGB", (4, 4), (99, 98, 97)).save(source / "a" / "0.png")
    with pytest.raises(ValueError, match=r"train\.json was made with other settings: source was '.*expected the same"):
        convert(place(), str(shards))
    (shards / "train-00000.tar").unlink()
    convert(place(), str(shards))
    assert (shards / "train-00000.tar").read_bytes() != written


def test_conversions_of_versions_that_did_not_record_the_source_are_continued(tmp_path: Path) -> None:
    (tmp_path / "source/a").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "source/a/0.png")
    convert(str(tmp_path / "source"), str(tmp_path / "shards"))
    record = json.loads((tmp_path / "shards/train.json").read_text())
    del record["settings"]["source"]
    (tmp_path / "shards/train.json").write_text(json.dumps(record))
    written = (tmp_path / "shards/train-00000.tar").stat().st_mtime_ns
    convert(str(tmp_path / "source"), str(tmp_path / "shards"))
    assert (tmp_path / "shards/train-00000.tar").stat().st_mtime_ns == written
