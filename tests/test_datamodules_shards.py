"""Shards: random access, labels, and errors."""

from __future__ import annotations

import io
import itertools
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from webdataset import TarWriter

from datamodules import Shards, TensorExamples
from datamodules.shards import shard_paths
from datamodules.storage.tar_index import index_shard
from lightning_guide.data import Batch


def png(pixels: np.ndarray) -> bytes:
    """Encode a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def pixels(number: int, side: int = 8) -> np.ndarray:
    """The image of record `number`."""
    return np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)


def write(path: Path, records: list[tuple[str, bytes]], *, mode: str = "w", dialect: int | None = None) -> Path:
    """A tar of (name, content) files."""
    with tarfile.open(path, mode, format=dialect) as tar:  # type: ignore[call-overload]
        for name, content in records:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards of 5 training records and one of 3 held-out ones, written by webdataset; label = number % 4."""
    for name, numbers in (("train-0", range(5)), ("train-1", range(5, 10)), ("test-0", range(10, 13))):
        with TarWriter(str(tmp_path / f"{name}.tar")) as tar:
            for number in numbers:
                tar.write({"__key__": f"{number:03d}", "png": png(pixels(number)), "cls": number % 4})
    return tmp_path


def shards(folder: Path, **arguments: object) -> Shards:
    """The datamodule of the fixture's shards."""
    settings = {"num_classes": 4, "batch_size": 4} | arguments
    return Shards(f"{folder}/train-{{0..1}}.tar", f"{folder}/test-*.tar", **settings)


def spoil(path: Path, key: str) -> None:
    """Overwrite the image of one record, keeping the tar valid."""
    with tarfile.open(path) as tar:
        member = tar.getmember(f"{key}.png")
    content = bytearray(path.read_bytes())
    content[member.offset_data : member.offset_data + member.size] = bytes(member.size)
    path.write_bytes(content)


@pytest.mark.parametrize("cache", [True, False, None])
def test_records_read_back_exactly(folder: Path, cache: bool | None) -> None:
    """Images and labels in the order of the shards, from disk and from memory."""
    data = shards(folder, cache=cache)
    train, heldout = data.training(), data.heldout()
    assert isinstance(train, TensorExamples) == (cache is not False)
    assert (len(train), len(heldout), data.data_shape, data.num_classes) == (10, 3, (3, 8, 8), 4)
    for number in range(10):
        x, label = train[number]
        assert np.array_equal(x.permute(1, 2, 0).numpy(), pixels(number)) and label == number % 4
    assert data.corrupt == []


def test_stream_is_the_same_from_disk_and_memory_with_any_workers(folder: Path) -> None:
    """Types and content of the batches."""

    def batches(**arguments: object) -> list[Batch]:
        return list(itertools.islice(iter(shards(folder, flip=True, **arguments).train_dataloader()), 6))

    memory, disk, workers = batches(), batches(cache=False), batches(cache=False, num_workers=2)
    for one, two, three in zip(memory, disk, workers, strict=True):
        assert type(one) is type(two) is type(three) is Batch and one.x.dtype == torch.uint8
        assert torch.equal(one.x, two.x) and torch.equal(one.x, three.x)
        assert torch.equal(one.condition, two.condition) and torch.equal(one.condition, three.condition)


def test_images_are_shrunk_by_block_mean(folder: Path) -> None:
    """8x8 to 2x2: the mean of 4x4 pixels, rounded half up."""
    data = shards(folder, size=2)
    blocks = torch.from_numpy(pixels(3)).permute(2, 0, 1).reshape(3, 2, 4, 2, 4).to(torch.int64)
    assert torch.equal(data.training()[3][0], ((blocks.sum((2, 4)) + 8) // 16).to(torch.uint8))
    assert data.data_shape == (3, 2, 2)


def test_without_classes_labels_are_ignored(folder: Path) -> None:
    """Conditions are None, and records need no label."""
    write(folder / "train-0.tar", [("000.png", png(pixels(0)))])
    data = shards(folder, num_classes=0)
    assert next(iter(data.train_dataloader())).condition is None and data.training()[0][1] == -1


@pytest.mark.parametrize("dialect", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_dialect_of_tar(tmp_path: Path, dialect: int) -> None:
    """Folders, long names and capital extensions; members of a record not adjacent; names with a leading __ skipped."""
    name = "folder/" + "long" * 20 + "/a"
    names = [f"{name}.PNG", "z.png", "z.cls", "__meta.json", "z.json", f"{name}.cls"]
    contents = {"PNG": png(pixels(0)), "png": png(pixels(1)), "cls": b"1\n", "json": b"{}"}
    path = write(tmp_path / "a.tar", [(n, contents[n.rsplit(".", 1)[1]]) for n in names], dialect=dialect)
    index = index_shard(path, num_classes=2)
    assert [index.key(0), index.key(1)] == [name, "z"] and index.labels.tolist() == [1, 1]
    content = path.read_bytes()
    for record, number in ((0, 0), (1, 1)):
        begin = int(index.offsets[record])
        assert content[begin : begin + int(index.sizes[record])] == png(pixels(number))


def test_corrupt_images_in_memory_are_left_out_and_reported_once(folder: Path) -> None:
    """Two of ten, named by key and shard."""
    spoil(folder / "train-0.tar", "002")
    spoil(folder / "train-1.tar", "009")
    data = shards(folder)
    with pytest.warns(UserWarning, match=r"2 of 10 images are corrupt and left out: record '002' of .*train-0.tar"):
        train = data.training()
    assert train.labels.tolist() == [0, 1, 3, 0, 1, 2, 3, 0]
    assert data.corrupt == [f"record '002' of {folder}/train-0.tar", f"record '009' of {folder}/train-1.tar"]


@pytest.mark.filterwarnings("ignore:record")
@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_images_on_disk_are_replaced_and_counted(folder: Path, workers: int) -> None:
    """By the next readable record with its label, also if found by a worker."""
    spoil(folder / "train-0.tar", "002")
    spoil(folder / "train-0.tar", "003")
    data = shards(folder, cache=False, num_workers=workers)
    reference = list(data.reference(torch.device("cpu")))
    assert torch.cat([batch.condition for batch in reference]).tolist() == [0, 1, 0, 0, 0, 1, 2, 3, 0, 1]
    x = torch.cat([batch.x for batch in reference])
    assert all(np.array_equal(x[record].permute(1, 2, 0).numpy(), pixels(4)) for record in (2, 3, 4))
    assert data.corrupt == [f"record '{key}' of {folder}/train-0.tar" for key in ("002", "003")]


def test_first_image_may_be_corrupt(folder: Path) -> None:
    """The first readable image determines the size; a shard without any is an error."""
    for number in range(5):
        spoil(folder / "train-0.tar", f"{number:03d}")
        if number == 0:
            with pytest.warns(UserWarning, match="record '000'"):
                assert shards(folder).data_shape == (3, 8, 8)
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="none of the 5 images in .*train-0.tar"):
        shards(folder)


@pytest.mark.parametrize("left", [0, 100, 512, 1500, -1024, -2000])
def test_truncated_shards(folder: Path, left: int) -> None:
    """Truncated within a header, within an image, between records, and before the end-of-archive mark."""
    path = folder / "test-0.tar"
    with tarfile.open(path) as tar:
        tar.getmembers()
        end = tar.offset
    path.write_bytes(path.read_bytes()[: left if left >= 0 else end + 1024 + left])
    with pytest.raises(ValueError, match="test-0.tar (is empty|is truncated or damaged|cannot be read as a tar)"):
        shards(folder).heldout()


def test_altered_header_and_compressed_tar(folder: Path) -> None:
    """A header with a wrong checksum does not end the shard silently; compressed tars are refused."""
    path = folder / "test-0.tar"
    with tarfile.open(path) as tar:
        at = tar.getmembers()[2].offset
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="truncated or damaged: after 2 files"):
        shards(folder).heldout()
    write(path, [(f"{number}.png", png(pixels(number))) for number in range(3)], mode="w:gz")
    with pytest.raises(ValueError, match="expected a complete, uncompressed tar"):
        shards(folder).heldout()


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([("a.png", b"x")], "record 'a' of .* has no label; expected a.cls, found png"),
        ([("a.cls", b"1")], "record 'a' of .* holds 0 images; expected exactly one of jpg, .*found cls"),
        ([("a.png", b"x"), ("a.jpg", b"x"), ("a.cls", b"1")], "holds 2 images"),
        ([("a.png", b"x"), ("a.png", b"x"), ("a.cls", b"1")], "holds 'a.png' twice"),
        ([("a.png", b"x"), ("a.cls", b"4")], "label 4; expected 0 to 3"),
        ([("a.png", b"x"), ("a.cls", b"cat")], "label b'cat'; expected 0 to 3 as text"),
        ([("a.png", b"x"), ("a.cls", b"-1")], "label b'-1'; expected 0 to 3 as text"),
        ([("README", b"x")], "holds no records"),
    ],
)
def test_bad_records(folder: Path, records: list[tuple[str, bytes]], message: str) -> None:
    """One sentence each, with shard and record."""
    write(folder / "test-0.tar", records)
    with pytest.raises(ValueError, match=message):
        shards(folder).heldout()


def test_sizes_that_do_not_match(folder: Path) -> None:
    """Within a set, between the sets, and too small to be shrunk."""
    odd = [("a.png", png(pixels(0))), ("a.cls", b"1"), ("b.png", png(pixels(1, 6))), ("b.cls", b"1")]
    write(folder / "train-1.tar", odd)
    with pytest.raises(ValueError, match="record 'b' of .*train-1.tar has 6x6 pixels; expected 8x8"):
        shards(folder).training()
    with pytest.raises(ValueError, match="record 'b' of .*: 6x6 pixels cannot be shrunk to 7x7"):
        shards(folder, size=7).training()
    write(folder / "test-0.tar", odd[2:])
    with pytest.raises(ValueError, match=r"heldout images in .* have shape \(3, 6, 6\); expected \(3, 8, 8\)"):
        shards(folder).heldout()


def test_patterns(folder: Path) -> None:
    """Braces, wildcards and lists; errors name missing and existing files."""
    both = [folder / "train-0.tar", folder / "train-1.tar"]
    assert shard_paths(f"{folder}/train-{{0..1}}.tar") == shard_paths(f"{folder}/train-*.tar") == both
    assert shard_paths([str(both[1]), f"{folder}/*-0.tar"]) == [both[1], folder / "test-0.tar", both[0]]
    for pattern, message in (
        (f"{folder}/train-{{0..3}}.tar", "2 of 4 shards are missing, first .*train-2.tar; the folder .* holds test-0"),
        (f"{folder}/none-*.tar", "no file matches .*holds test-0.tar, train-0.tar, train-1.tar"),
        ([], "no shards are named"),
        ([str(both[0])] * 2, "train-0.tar is named twice"),
        ("https://host/train-{0..3}.tar", "is a URL; expected local tar files"),
        ("pipe:cat a.tar", "is a URL"),
    ):
        with pytest.raises(ValueError, match=message):
            shard_paths(pattern)  # type: ignore[arg-type]


def test_bad_arguments(folder: Path) -> None:
    """Classes and size below their minimum."""
    with pytest.raises(ValueError, match="num_classes is -1"):
        shards(folder, num_classes=-1)
    with pytest.raises(ValueError, match="size is 0"):
        shards(folder, size=0)
