"""Captions of images in a folder or archive: `metadata.jsonl`, or a text file beside each image."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path, PurePosixPath
from typing import Any

from datamodules.storage.image_codec import UndecodableError
from datamodules.storage.image_files import ImageFiles, image_files, is_image
from lightning_guide.utils.errors import did_you_mean

__all__ = ["CaptionedImage", "captioned_images", "captions_of"]

LISTING = "metadata.jsonl"
KEYS = ("text", "caption")


@dataclass(frozen=True)
class CaptionedImage:
    """An image among files, and its caption."""

    files: ImageFiles
    name: str
    caption: str

    def __str__(self) -> str:
        return f"{self.name} in {self.files.place}"


def captioned_images(places: str | Sequence[str]) -> list[CaptionedImage]:
    """Return the images of folders, zip archives and tar shards (`data/*.tar`, for example), sorted in each.

    Raises:
        ValueError: naming the place, if nothing is there or an image and its caption do not fit each other.
    """
    given = [places] if isinstance(places, str) else list(places)
    found: list[CaptionedImage] = []
    for pattern in given:
        name = str(Path(pattern).expanduser())
        matches = [name] if Path(name).exists() else sorted(glob(name))
        if not matches:
            hint = did_you_mean(name)
            raise ValueError(f"no file or folder matches {pattern!r}{hint}; expected images with captions")
        for place in matches:
            files = image_files(place)
            found += [CaptionedImage(files, image, text) for image, text in captions_of(files).items()]
    return found


def captions_of(files: ImageFiles) -> dict[str, str]:
    """Return the caption of each image, by its name: one line, with single spaces.

    They are the rows {"file_name": "1.png", "text": "..."} of all files `metadata.jsonl`, names relative to that file;
    if there is none, the content of `1.txt` for `1.png`, or `text` or `caption` in `1.json`.

    Raises:
        ValueError: naming place and file, for an image without caption or a caption without image, an empty one, or one
            that is not UTF-8.
    """
    names = files.names()
    images = [name for name in names if is_image(name)]
    if not images:
        raise ValueError(f"{files.place} holds no images; expected images with captions")
    listings = [name for name in names if PurePosixPath(name).name == LISTING]
    captions = dict(_listed(files, listings, set(images)) if listings else _beside(files, names, images))
    lacking = [name for name in images if name not in captions]
    if lacking:
        more = f", as have {len(lacking) - 1} others" if len(lacking) > 1 else ""
        expected = f"a row in {listings[0]}" if listings else f"{_stem(lacking[0])}.txt, .json, or a {LISTING}"
        raise ValueError(f"{lacking[0]} in {files.place} has no caption{more}; expected {expected}")
    return {name: captions[name] for name in images}


def _listed(files: ImageFiles, listings: Sequence[str], images: set[str]) -> Iterator[tuple[str, str]]:
    """Yield names and captions of the rows of all listings."""
    seen: set[str] = set()
    for listing in listings:
        folder = PurePosixPath(listing).parent
        for number, line in enumerate(_text(files, listing).splitlines(), start=1):
            if not line.strip():
                continue
            place = f"line {number} of {listing} in {files.place}"
            row = _object(line, place)
            if not isinstance(row.get("file_name"), str):
                raise ValueError(f"{place} has no file_name; expected {{'file_name': '1.png', 'text': '...'}}")
            name = (folder / row["file_name"]).as_posix()
            if name not in images:
                raise ValueError(f"{place} names the image {row['file_name']!r}, which is not there")
            if name in seen:
                raise ValueError(f"{place} names the image {row['file_name']!r} a second time")
            seen.add(name)
            yield name, _caption(_value(row, place), place)


def _beside(files: ImageFiles, names: Sequence[str], images: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield names and captions of the images with a text file, or JSON, beside them."""
    texts = {_stem(name): name for name in names if name.lower().endswith(".txt")}
    objects = {_stem(name): name for name in names if name.lower().endswith(".json")}
    stems: dict[str, str] = {}
    for image in images:
        if (stem := _stem(image)) in stems:
            raise ValueError(f"{stems[stem]} and {image} in {files.place} share one caption; expected other names")
        stems[stem] = image
    if alone := sorted(texts.keys() - stems.keys()):
        more = f", nor have {len(alone) - 1} others" if len(alone) > 1 else ""
        raise ValueError(
            f"{texts[alone[0]]} in {files.place} has no image of its name{more}; expected one, or no caption"
        )
    for stem, image in stems.items():
        if stem in texts:
            yield image, _caption(_text(files, texts[stem]), f"{texts[stem]} in {files.place}")
        elif stem in objects:
            place = f"{objects[stem]} in {files.place}"
            yield image, _caption(_value(_object(_text(files, objects[stem]), place), place), place)


def _value(row: dict[str, Any], place: str) -> Any:
    """Return the caption of a JSON object."""
    found = next((key for key in KEYS if key in row), None)
    if found is None:
        raise ValueError(
            f"{place} has the keys {', '.join(row) or 'none'}; expected the caption as {' or '.join(KEYS)}"
        )
    return row[found]


def _caption(value: Any, place: str) -> str:
    """Return a caption on one line; refuse an empty one."""
    text = " ".join(value.split()) if isinstance(value, str) else ""
    if not text:
        what = "an empty caption" if isinstance(value, str) else f"the caption {value!r}"
        raise ValueError(f"{place} holds {what}; expected text, or no image")
    return text


def _object(text: str, place: str) -> dict[str, Any]:
    """Return a JSON object."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{place} is no JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{place} holds a {type(found).__name__}; expected a JSON object")
    return found


def _text(files: ImageFiles, name: str) -> str:
    """Return the content of a text file in UTF-8."""
    try:
        return files.read(name).decode("utf-8-sig")
    except (UndecodableError, UnicodeDecodeError) as error:
        raise ValueError(f"{name} in {files.place} cannot be read ({error}); expected text in UTF-8") from None


def _stem(name: str) -> str:
    """Return a name without its last suffix."""
    return str(PurePosixPath(name).with_suffix(""))
