"""Class numbers from one mapping, in folders, archives, shards and runs; hidden files, odd names and links."""

from __future__ import annotations

import io
import json
import os
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules import ImageFolder, Shards
from datamodules.commands.convert import convert
from datamodules.storage.image_files import image_files
from datamodules.storage.labels import labels_of
from datamodules.storage.tar_index import index_shard
from lightning_guide.utils.images import encode_png

KINDS = ["folder", "zip", "tar"]


def image(i: int) -> bytes:
    """PNG of one color, the number of the image."""
    return encode_png(torch.full((3, 4, 4), i, dtype=torch.uint8))


def classes(**counts: int) -> dict[str, bytes]:
    """Files `CLASS/NUMBER.png`."""
    names = [f"{name}/{i}.png" for name, count in counts.items() for i in range(count)]
    return {name: image(i) for i, name in enumerate(names)}


def place(path: Path, files: dict[str, bytes], kind: str = "folder") -> str:
    """Write files to a folder or an archive."""
    if kind == "zip":
        with zipfile.ZipFile(path.with_suffix(".zip"), "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return str(path.with_suffix(".zip"))
    if kind == "tar":
        with tarfile.open(path.with_suffix(".tar"), "w") as tar:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return str(path.with_suffix(".tar"))
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return str(path)


def listing(rows: Any) -> bytes:
    return json.dumps({"labels": rows}).encode()


def labels(data: ImageFolder | Shards, split: str = "training") -> list[tuple[int, int]]:
    """Pairs (number of the image, label) of a split."""
    examples = getattr(data, split)()
    return sorted((int(x[0, 0, 0]), int(label)) for x, label in (examples[i] for i in range(len(examples))))


@pytest.mark.parametrize("kind", KINDS)
def test_heldout_classes_are_numbered_as_in_training(tmp_path: Path, kind: str) -> None:
    train = place(tmp_path / "train", classes(ant=2, bee=2, cat=2), kind)
    heldout = place(tmp_path / "heldout", classes(ant=1, cat=1), kind)
    data = ImageFolder(train, heldout, num_classes=3)
    assert labels(data) == [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (5, 2)]
    assert labels(data, "heldout") == [(0, 0), (1, 2)] and data.class_names == ["ant", "bee", "cat"]
    more = place(tmp_path / "more", classes(ant=1, dog=1), kind)
    with pytest.raises(ValueError, match="more.* has the classes dog, which are not among those .*: ant, bee, cat"):
        ImageFolder(train, more, num_classes=3)
    assert len(ImageFolder(train, more).heldout()) == 2  # without labels there is nothing to number
    listed = place(tmp_path / "listed", {"1.png": image(1), "dataset.json": listing([["1.png", 1]])}, kind)
    with pytest.raises(ValueError, match="listed.* has the classes 0, 1, which are not among those .*: ant, bee, cat"):
        ImageFolder(train, listed, num_classes=3)


@pytest.mark.parametrize("kind", KINDS)
def test_converted_sets_of_one_folder_have_one_numbering(tmp_path: Path, kind: str) -> None:
    train = place(tmp_path / "train", classes(ant=2, bee=2, cat=2), kind)
    test = place(tmp_path / "test", classes(ant=1, cat=1), kind)
    out = tmp_path / "out"
    convert(train, str(out), name="train")
    convert(test, str(out), name="test")
    convert(test, str(out), name="test")  # nothing left to do
    data = Shards(f"{out}/train-*.tar", f"{out}/test-*.tar", num_classes=3)
    assert labels(data, "heldout") == [(0, 0), (1, 2)] and data.class_names == ["ant", "bee", "cat"]
    assert json.loads((out / "test.json").read_text())["classes"] == ["ant", "bee", "cat"]
    with pytest.raises(ValueError, match="has the classes dog, which are not among"):
        convert(place(tmp_path / "more", classes(dog=1), kind), str(out), name="more")
    convert(test, str(tmp_path / "alone"), name="test")
    with pytest.raises(ValueError, match=r"numbers the classes ant, cat, .* ant, bee, cat; expected one numbering"):
        Shards(f"{out}/train-*.tar", f"{tmp_path}/alone/test-*.tar", num_classes=3)
    for wrong in (2, 4):
        with pytest.raises(ValueError, match=rf"have 3 classes \(ant, bee, cat\); num_classes is {wrong}"):
            Shards(f"{out}/train-*.tar", f"{out}/test-*.tar", num_classes=wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_common_top_folders_are_passed_through(tmp_path: Path, kind: str) -> None:
    files = {f"data/deep/{name}": data for name, data in classes(ant=1, bee=1, cat=1).items()}
    assert labels(ImageFolder(*[place(tmp_path / "a", files, kind)] * 2, num_classes=3)) == [(0, 0), (1, 1), (2, 2)]
    junk = {"__MACOSX/data/._x.png": b"", ".DS_Store": b"", "data/._1.png": b"", "data/Thumbs.db": b"", "readme": b""}
    rows = listing([["deep/ant/0.png", 2], ["deep/bee/0.png", 0], ["deep/cat/0.png", 1]])
    both = files | junk | {"data/dataset.json": rows}
    data = ImageFolder(*[place(tmp_path / "b", both, kind)] * 2, num_classes=3)
    assert labels(data) == [(0, 2), (1, 0), (2, 1)] and not data.corrupt
    convert(place(tmp_path / "c", both, kind), str(tmp_path / "out"))
    shards = f"{tmp_path}/out/train-*.tar"
    assert labels(Shards(shards, shards, num_classes=3)) == [(0, 2), (1, 0), (2, 1)]
    one = place(tmp_path / "d", classes(ant=3), kind)
    assert labels(ImageFolder(one, one, num_classes=1)) == [(0, 0), (1, 0), (2, 0)]
    with pytest.raises(ValueError, match=r"has 1 classes \(ant\); num_classes is 3"):
        ImageFolder(one, one, num_classes=3)


@pytest.mark.parametrize("label", [0.7, 1.0, True, -1, "1", None, [0, 1], 2**31, 1e300])
def test_labels_other_than_class_numbers_are_refused(tmp_path: Path, label: Any) -> None:
    files = {"0.png": image(0), "1.png": image(1), "dataset.json": listing([["0.png", 0], ["1.png", label]])}
    for source in (place(tmp_path / "a", files), place(tmp_path / "a", files, "zip")):
        with pytest.raises(ValueError, match=r"dataset.json in .*a(.zip)? is damaged .its row \['1.png', .*whole"):
            ImageFolder(source, source, num_classes=2)
        with pytest.raises(ValueError, match="with whole numbers from 0, or null"):
            convert(source, str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"labels": [], "labels": []}', "the key 'labels' occurs twice"),
        (b"[" * 100000, "dataset.json in .* is damaged"),
        (b"\xff\xfe", "dataset.json in .* is damaged"),
        (b'{"labels": {"a.png": 0}}', "holds no list of labels"),
        (b'{"labels": [["a.png", 0], ["a.png", 1]]}', "lists 'a.png' twice"),
        (b'{"labels": [["a.png", 0], ["./a.png", 0]]}', "lists './a.png' twice"),
        (b'{"labels": [[0, 0]]}', r"its row \[0, 0\]"),
        (b'{"labels": [["a.png"]]}', r"its row \['a.png'\]"),
        (b'{"labels": [["a.png", 1]]}', r"has 2 classes \(0, 1\); num_classes is 1"),
    ],
)
def test_damaged_listings(tmp_path: Path, content: bytes, message: str) -> None:
    source = place(tmp_path / "a", {"a.png": image(0), "dataset.json": content})
    with pytest.raises(ValueError, match=message):
        ImageFolder(source, source, num_classes=1)


def test_names_of_archives(tmp_path: Path) -> None:
    """Ambiguous names and those outside are refused; `./`, capitals and Unicode of both forms are not."""
    for kind in ("zip", "tar"):
        for name in ("/etc/a.png", "../a.png", "a/../../b.png"):
            with pytest.raises(ValueError, match="holds the file .* expected names inside the archive"):
                image_files(place(tmp_path / "a", {name: image(0)}, kind)).names()
        files = {"./A\u0308/1.PNG": image(1), "./b/2.Png": image(2)}
        found = labels_of(image_files(place(tmp_path / "b", files, kind)))
        assert found.classes == ["b", "\u00c4"] and found.labels == {"A\u0308/1.PNG": 1, "b/2.Png": 0}
    rows = listing([["\u00c4.png", 3]])
    found = labels_of(image_files(place(tmp_path / "c", {"A\u0308.png": image(0), "dataset.json": rows})))
    assert found.labels == {"A\u0308.png": 3}
    twice = place(tmp_path / "d", classes(a=1), "zip")
    with zipfile.ZipFile(twice, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("a/0.png", image(7))
    with pytest.raises(ValueError, match=r"d.zip holds 'a/0.png' twice; expected each file once"):
        ImageFolder(twice, twice)


def test_links_of_folders(tmp_path: Path) -> None:
    """Links are followed, circles end, and a link to nothing is a corrupt image."""
    real = Path(place(tmp_path / "real", classes(ant=1, bee=1)))
    (tmp_path / "data").mkdir()
    for name in ("ant", "bee"):
        (tmp_path / "data" / name).symlink_to(real / name)
    (real / "ant" / "again").symlink_to(real)
    (tmp_path / "data" / "back").symlink_to(tmp_path / "data")
    (real / "bee" / "lost.png").symlink_to(tmp_path / "nothing.png")
    data = ImageFolder(*[str(tmp_path / "data")] * 2, cache=False)
    assert image_files(tmp_path / "data").names() == ["ant/0.png", "bee/0.png", "bee/lost.png"]
    with pytest.warns(UserWarning, match=r"bee/lost.png in .* is corrupt \(No such file or directory\)"):
        assert len(labels(data)) == 3
    os.mkfifo(tmp_path / "data" / "no image")


def test_links_of_tars_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        link = tarfile.TarInfo("b.png")
        link.type, link.linkname = tarfile.LNKTYPE, "a.png"
        tar.addfile(link)
    for read in (lambda: image_files(tmp_path / "a.tar"), lambda: index_shard(tmp_path / "a.tar", num_classes=0)):
        with pytest.raises(ValueError, match="'b.png' is a link or sparse; expected plain files"):
            read()


@pytest.mark.parametrize("top", ["", "d/", "./"])
def test_hidden_files_of_shards(tmp_path: Path, top: str) -> None:
    names = ["0000.png", "0000.cls", "._0000.png", "._0000.cls", ".DS_Store", "Thumbs.db", "desktop.ini"]
    files = {top + name: b"1" for name in names} | {"__MACOSX/d/._0000.png": b"1", ".git/x.png": b"1"}
    for dialect in (tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with tarfile.open(tmp_path / "a.tar", "w", format=dialect) as tar:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                info.pax_headers = {"LIBARCHIVE.xattr.com.apple": "x"} if dialect == tarfile.PAX_FORMAT else {}
                tar.addfile(info, io.BytesIO(data))
        index = index_shard(tmp_path / "a.tar", num_classes=2)
        assert len(index) == 1 and index.labels.tolist() == [1]


def test_classes_without_images_are_named(tmp_path: Path) -> None:
    source = place(tmp_path / "a", classes(ant=1, cat=1))
    (tmp_path / "a" / "bee").mkdir()
    with pytest.raises(ValueError, match=r"has 2 classes \(ant, cat; without images: bee\); num_classes is 3"):
        ImageFolder(source, source, num_classes=3)


@pytest.mark.parametrize(("count", "share"), [(30, 0.02), (2, 0.001), (2, 0.999), (5, 0.5)])
def test_no_share_rounds_to_nothing(tmp_path: Path, count: int, share: float) -> None:
    source = place(tmp_path / "a", classes(ant=count))
    data = ImageFolder(source, share, num_classes=1)
    train, heldout = labels(data), labels(data, "heldout")
    assert train and heldout and sorted(train + heldout) == [(i, 0) for i in range(count)]


def test_one_image_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds one image; expected at least two, to hold out a share of 0.02"):
        ImageFolder(place(tmp_path / "a", classes(ant=1)))


def test_damaged_directories_of_zips_lose_nothing_silently(tmp_path: Path) -> None:
    """A name whose damage would make a class, or hide an image; a directory that lost a file."""
    whole = Path(place(tmp_path / "a", {f"data/{name}": each for name, each in classes(ant=3, bee=3).items()}, "zip"))
    data = whole.read_bytes()
    at = data.rindex(b"data/ant/1.png")
    for changed in (b"dath/ant/1.png", b"data/ant/1.pnh", b"data/ant/.1png", b"data/ant/1png/"):
        whole.write_bytes(data[:at] + changed + data[at + len(changed) :])
        with pytest.raises(ValueError, match="a.zip is damaged: File name in directory .* differ"):
            ImageFolder(str(whole), str(whole), num_classes=2)
    first = data.index(b"PK\1\2")
    second = data.index(b"PK\1\2", first + 1)
    field = struct.pack("<H", data.index(b"PK\1\2", second + 1) - second)  # comment of the first: the second entry
    whole.write_bytes(data[: first + 32] + field + data[first + 34 :])
    with pytest.raises(ValueError, match="a.zip is damaged.* lists 5 of 6 files"):
        ImageFolder(str(whole), str(whole), num_classes=2)


@pytest.mark.parametrize("joined", [False, True])
def test_end_mark_within_a_tar_is_noticed(tmp_path: Path, joined: bool) -> None:
    path = Path(place(tmp_path / "a", {f"{i}.png": image(i) for i in range(3)}, "tar"))
    data = path.read_bytes()
    at = data.index(b"1.png")
    path.write_bytes(data + data if joined else data[:at] + bytes(1024) + data[at + 1024 :])
    for read in (image_files, lambda path: index_shard(path, num_classes=0)):
        with pytest.raises(ValueError, match="holds data after its end-of-archive mark .* not several joined"):
            read(path)
