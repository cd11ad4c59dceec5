"""Captions beside images: metadata.jsonl, text files and shards, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from webdataset import TarWriter

from datamodules.storage.captions import captioned_images
from lightning_guide.utils.images import encode_png

PIXELS = torch.Generator().manual_seed(0)


def png(height: int = 8, width: int = 8) -> bytes:
    return encode_png(torch.randint(256, (3, height, width), generator=PIXELS).to(torch.uint8))


def write(folder: Path, **files: str | bytes | None) -> Path:
    """Write files named with __ for dots and slashes kept; None: an image."""
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png() if content is None else content.encode() if isinstance(content, str) else content)
    return folder


def found(*places: Path) -> dict[str, str]:
    return {each.name: each.caption for each in captioned_images([str(place) for place in places])}


def test_text_files_beside_images(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    write(tmp_path, a__png=None, a__txt="\ufeffa red\n  boat ")
    write(tmp_path / "b", a__jpg=None, a__json='{"caption": "a dog", "width": 3}', stats__json="[]")
    assert found(tmp_path) == {"a.png": "a red boat", "b/a.jpg": "a dog"}


def test_metadata_as_of_an_image_folder(tmp_path: Path) -> None:
    rows = [{"file_name": "2.png", "text": "two"}, {"file_name": "in/1.png", "text": "one", "more": 1}]
    write(tmp_path / "train", **{"2__png": None}, metadata__jsonl="\n\n".join(map(json.dumps, rows)))
    write(tmp_path / "train/in", **{"1__png": None})
    assert (
        found(tmp_path) == {"train/2.png": "two", "train/in/1.png": "one"} and list(found(tmp_path))[0] == "train/2.png"
    )


def test_shards_and_a_pattern(tmp_path: Path) -> None:
    for shard in range(2):
        with (tmp_path / f"{shard}.tar").open("wb") as file, TarWriter(file) as tar:
            for i in range(3):
                tar.write({"__key__": f"{shard}{i}", "png": png(), "txt": f"number {shard}{i}", "json": b"[]"})
    images = captioned_images(str(tmp_path / "*.tar"))
    assert [each.caption for each in images] == [f"number {shard}{i}" for shard in range(2) for i in range(3)]
    assert images[4].files.read(images[4].name).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a__png": None, "b__png": None, "c__png": None, "c__txt": "c"},
         "a.png in .* has no caption, as have 1 others; expected a.txt, .json, or a metadata.jsonl"),
        ({"a__png": None, "a__txt": "a", "b__txt": "b"}, "b.txt in .* has no image of its name; expected one"),
        ({"a__png": None, "a__txt": " \n"}, "a.txt in .* holds an empty caption"),
        ({"a__png": None, "a__txt": "Bär".encode("latin-1")}, "a.txt in .* cannot be read .*expected text in UTF-8"),
        ({"a__png": None, "a__jpg": None, "a__txt": "a"}, "a.jpg and a.png in .* share one caption"),
        ({"a__png": None, "a__json": "{"}, "a.json in .* is no JSON"),
        ({"a__png": None, "a__json": "[]"}, "a.json in .* holds a list; expected a JSON object"),
        ({"a__png": None, "a__json": '{"title": "a"}'}, "a.json in .* has the keys title; expected .* text or caption"),
        ({"a__png": None, "metadata__jsonl": '{"file_name": "b.png", "text": "b"}'},
         "line 1 of metadata.jsonl in .* names the image 'b.png', which is not there"),
        ({"a__png": None, "metadata__jsonl": '{"file_name": "a.png", "text": null}'}, "holds the caption None"),
        ({"a__png": None, "metadata__jsonl": '{"text": "a"}'}, "line 1 of metadata.jsonl in .* has no file_name"),
        ({"a__png": None, "metadata__jsonl": '{"file_name": "a.png", "text": "a"}\n' * 2}, "line 2 .* a second time"),
        ({"a__png": None, "metadata__jsonl": ""}, "a.png in .* has no caption; expected a row in metadata.jsonl"),
        ({"a__txt": "a"}, "holds no images; expected images with captions"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, files: dict[str, str | bytes | None], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        captioned_images(str(write(tmp_path, **files)))
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(f"no file or folder matches '{tmp_path}/*.tar'")):
        captioned_images(str(tmp_path / "*.tar"))
