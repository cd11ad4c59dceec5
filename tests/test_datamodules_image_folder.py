"""Images in folders and zip archives: the same data, labels and order, and clear errors."""

from __future__ import annotations

import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from datamodules import ImageFolder, Shards, write_shards
from datamodules.commands.convert import ImageArchive
from lightning_guide.utils.images import encode_png

COUNT = 40


def image(i: int, side: int = 8) -> Tensor:
    """Return image number i."""
    return torch.randint(256, (3, side, side), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)


def contents() -> dict[str, bytes]:
    """Return files of two classes in subfolders, and one that is not an image."""
    files = {f"{'cat' if i % 2 else 'ant'}/deep/{i:03d}.png": encode_png(image(i)) for i in range(COUNT)}
    return {**files, "readme.txt": b"not an image"}


def folder(place: Path, files: dict[str, bytes] | None = None) -> str:
    for name, data in (contents() if files is None else files).items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    return str(place)


def archive(place: Path, files: dict[str, bytes] | None = None, kind: int = zipfile.ZIP_STORED) -> str:
    with zipfile.ZipFile(place, "w", kind) as file:
        for name, data in (contents() if files is None else files).items():
            file.writestr(name, data)
    return str(place)


def everything(data: ImageFolder | Shards, split: str) -> list[tuple[int, int]]:
    """Return (number of the image, label) of a split, found by the pixels."""
    examples = getattr(data, split)()
    known = {image(i).numpy().tobytes(): i for i in range(COUNT)}
    return [(known[examples[k][0].numpy().tobytes()], examples[k][1]) for k in range(len(examples))]


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("kind", ["folder", "stored", "deflated"])
def test_folders_and_archives_are_the_same_data(tmp_path: Path, kind: str, cache: bool) -> None:
    place = (
        folder(tmp_path / "a")
        if kind == "folder"
        else archive(tmp_path / "a.zip", kind=zipfile.ZIP_STORED if kind == "stored" else zipfile.ZIP_DEFLATED)
    )
    data = ImageFolder(place, 0.25, num_classes=2, cache=cache)
    assert data.data_shape == (3, 8, 8)
    train, heldout = everything(data, "training"), everything(data, "heldout")
    assert sorted(train + heldout) == [(i, i % 2) for i in range(COUNT)]
    assert 3 <= len(heldout) <= 17
    # the split depends on the names: it does not change for a file if others are added or removed
    again = ImageFolder(place, 0.25, num_classes=2, cache=cache)
    assert everything(again, "heldout") == heldout and everything(ImageFolder(place, 0.25), "heldout") == [
        (i, -1) for i, _ in heldout
    ]


def test_labels_of_dataset_json_and_separate_heldout_place(tmp_path: Path) -> None:
    names = [f"00000/img{i:08d}.png" for i in range(COUNT)]
    rows = {"labels": [[name, (i * 7) % 5] for i, name in enumerate(names)]}
    files = {name: encode_png(image(i)) for i, name in enumerate(names)}
    labeled = files | {"dataset.json": json.dumps(rows).encode()}
    data = ImageFolder(archive(tmp_path / "a.zip", labeled), archive(tmp_path / "b.zip", labeled), num_classes=5)
    assert everything(data, "training") == everything(data, "heldout") == [(i, (i * 7) % 5) for i in range(COUNT)]
    unlabeled = files | {"dataset.json": b'{"labels": null}'}
    place = archive(tmp_path / "c.zip", unlabeled)
    assert {label for _, label in everything(ImageFolder(place, place), "training")} == {-1}
    with pytest.raises(ValueError, match=r"00000/img00000000.png in .*c.zip has no label; expected 0 to 4"):
        ImageFolder(place, place, num_classes=5)


def test_archive_is_converted_to_shards(tmp_path: Path) -> None:
    write_shards(ImageArchive(archive(tmp_path / "a.zip")), tmp_path / "shards", name="train", records_per_shard=16)
    path = str(tmp_path / "shards" / "train-*.tar")
    assert sorted(everything(Shards(path, path, num_classes=2), "training")) == [(i, i % 2) for i in range(COUNT)]
    inventory = json.loads((tmp_path / "shards" / "train.json").read_text())
    assert inventory["classes"] == ["ant", "cat"]
    with pytest.raises(ValueError, match="00.png in .*c.zip has no label; expected a class folder"):
        ImageArchive(archive(tmp_path / "c.zip", {"00.png": encode_png(image(0))}))


@pytest.mark.parametrize("workers", [0, 2])
def test_training_stream_reads_archives_in_workers(tmp_path: Path, workers: int) -> None:
    place = archive(tmp_path / "a.zip")
    data = ImageFolder(place, place, num_classes=2, cache=False, batch_size=16, num_workers=workers)
    batches = iter(data.train_dataloader())
    known = {image(i).numpy().tobytes(): i for i in range(COUNT)}
    seen = []
    for _ in range(5):  # two passes
        x, labels = next(batches)
        numbers = [known[each.numpy().tobytes()] for each in x]
        assert labels is not None and labels.tolist() == [i % 2 for i in numbers]
        seen += numbers
    assert sorted(seen[:COUNT]) == sorted(seen[COUNT:]) == list(range(COUNT)) and seen[:COUNT] != seen[COUNT:]


def test_images_are_shrunk_and_mixed_sizes_refused(tmp_path: Path) -> None:
    files = {f"a/{i}.png": encode_png(image(i, 16 if i else 8)) for i in range(4)}
    place = folder(tmp_path / "mixed", files)
    assert ImageFolder(place, place, size=4).training()[1][0].shape == (3, 4, 4)
    with pytest.raises(ValueError, match=r"a/1.png in .*mixed has 16x16 pixels; expected 8x8"):
        ImageFolder(place, place).training()
    other = folder(tmp_path / "other", {"a/0.png": encode_png(image(0, 4))})
    with pytest.raises(ValueError, match=r"heldout images in .*other have shape \(3, 4, 4\); expected \(3, 8, 8\)"):
        ImageFolder(folder(tmp_path / "small"), other).heldout()


@pytest.mark.filterwarnings("ignore:.* is corrupt")
@pytest.mark.parametrize("cache", [True, False])
def test_corrupt_images_are_counted_and_left_out(tmp_path: Path, cache: bool) -> None:
    files = contents()
    files["ant/deep/000.png"] = files["ant/deep/000.png"][:40]
    place = Path(archive(tmp_path / "a.zip", files))
    damaged = bytearray(place.read_bytes())
    at = damaged.find(files["cat/deep/003.png"])
    damaged[at + 50] ^= 0xFF  # its checksum in the archive is now wrong
    place.write_bytes(damaged)
    data = ImageFolder(str(place), str(place), num_classes=2, cache=cache)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        numbers = {i for i, _ in everything(data, "training")}
    assert numbers == set(range(COUNT)) - {0, 3}
    assert data.corrupt == [f"ant/deep/000.png in {place}", f"cat/deep/003.png in {place}"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": "nowhere"}, "nowhere does not exist; expected a folder of images or a zip archive"),
        ({"heldout": 0.0}, "expected a folder, a zip archive, or a share between 0 and 1"),
        ({"num_classes": 1}, r"has 2 classes \(ant, cat\); num_classes is 1"),
        ({"num_classes": 3}, r"has 2 classes \(ant, cat\); num_classes is 3"),
        ({"num_classes": -1}, "num_classes is -1"),
        ({"size": 0}, "size is 0"),
    ],
)
def test_invalid_arguments(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageFolder(**({"train": folder(tmp_path / "a"), "heldout": 0.5} | arguments)).heldout()


def test_damaged_archive_empty_folder_and_invalid_labels_are_refused(tmp_path: Path) -> None:
    (tmp_path / "no.zip").write_bytes(b"PK, but not really")
    with pytest.raises(ValueError, match="no.zip is damaged or not a zip archive"):
        ImageFolder(str(tmp_path / "no.zip"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no images here; expected files ending in .jpg"):
        ImageFolder(str(tmp_path / "empty"))
    for text in (b"{", b'{"labels": [["a.png", "cat"]]}', b"[]"):
        place = folder(tmp_path / "listed", {"a.png": encode_png(image(0)), "dataset.json": text})
        with pytest.raises(ValueError, match="dataset.json in .*listed is damaged .*expected"):
            ImageFolder(place, place)


def test_hidden_and_macos_files_are_ignored(tmp_path: Path) -> None:
    junk = {name: b"\x00\x05\x16\x07" for name in ("__MACOSX/cat/._001.png", "cat/._001.png", ".trash/001.png")}
    files = contents() | junk
    place = folder(tmp_path / "a", files)
    for data in (ImageArchive(archive(tmp_path / "a.zip", files)), ImageArchive(place)):
        assert len(data) == COUNT and list(data.classes) == ["ant", "cat"]
    data = ImageFolder(place, place, num_classes=2)
    assert sorted(everything(data, "training")) == [(i, i % 2) for i in range(COUNT)] and not data.corrupt


def test_encrypted_archive_is_reported(tmp_path: Path) -> None:
    place = Path(archive(tmp_path / "a.zip"))
    data = bytearray(place.read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flag of encryption, in both headers of a file
        begin = -1
        while (begin := data.find(mark, begin + 1)) >= 0:
            data[begin + at] |= 1
    place.write_bytes(data)
    with pytest.raises(ValueError, match=r"none of the 40 images in .*a.zip can be decoded"):
        with pytest.warns(UserWarning, match="is encrypted, password required"):
            ImageFolder(str(place), str(place))


def test_heldout_fraction_on_command_line() -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(ImageFolder, "data")
    for given in ("0.25", "elsewhere"):
        parsed = parser.parse_args(["--data.train=here", f"--data.heldout={given}"]).data.heldout
        assert parsed == (0.25 if given == "0.25" else given)
