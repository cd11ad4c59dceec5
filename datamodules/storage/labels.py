"""Class numbers of images in folders and archives, by one mapping of class names to numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from unicodedata import normalize

from datamodules.storage.image_codec import UndecodableError
from datamodules.storage.image_files import ImageFiles, is_image
from lightning_guide.utils.files import parse_json

__all__ = ["LabeledNames", "are_numbers", "labels_of", "shown"]


_LISTING = "dataset.json"


@dataclass(frozen=True)
class LabeledNames:
    """Images of a place: `images` sorted, `labels` by name, `classes` by label; images may lack a label.

    `empty` are folders beside the class folders that hold no images.
    """

    images: list[str]
    labels: dict[str, int]
    classes: list[str]
    empty: list[str]


def labels_of(files: ImageFiles, classes: Sequence[str] | None = None) -> LabeledNames:
    """Return the images of a place and their labels, in the numbering of `classes` if given.

    Labels come from the file `dataset.json`, {"labels": [[name, label], ...]}, if it exists, else from class folders in
    alphabetical order. Folders that hold everything else are passed through: `data/ant/1.png` is of class `ant`.

    Raises:
        ValueError: if `dataset.json` holds something else, or the place has classes that `classes` lacks.
    """
    names = files.names()
    images = [name for name in names if is_image(name)]
    listings = [name for name in names if PurePosixPath(name).name == _LISTING]
    folders = files.folders()
    top = _common_top(images + listings, folders)
    if top + _LISTING in listings:
        labels = _listed(files, top)
        count = max(labels.values(), default=-1) + 1
        found = [str(label) for label in range(count)]
        if classes is None or are_numbers(classes):
            return LabeledNames(images, labels, max(found, list(classes or ()), key=len), [])
        raise _differs(files, found, classes)
    folder = {name: rest.split("/")[0] for name in images if "/" in (rest := name.removeprefix(top))}
    own = {name: normalize("NFC", first) for name, first in folder.items()}
    found = sorted(set(own.values()))
    if classes is not None and not set(found) <= set(classes):
        raise _differs(files, found, classes)
    chosen = found if classes is None else list(classes)
    number = {name: label for label, name in enumerate(chosen)}
    beside = {each.removeprefix(top) for each in folders if each.startswith(top)}
    empty = sorted({each for each in beside if "/" not in each} - set(folder.values()))
    return LabeledNames(images, {name: number[each] for name, each in own.items()}, chosen, empty)


def _common_top(names: Sequence[str], folders: Sequence[str]) -> str:
    """Return the folders, with a slash at their end, that hold all images in folders of their own, or the listing."""
    top = ""
    while names:
        rests = [name.removeprefix(top).split("/") for name in names]
        first = rests[0][0]
        inside = {each.removeprefix(top).split("/")[0] for each in folders if each.startswith(top)}
        if [_LISTING] in rests or inside - {first} or any(rest[0] != first for rest in rests):
            break
        if not (all(len(rest) > 2 for rest in rests) or [first, _LISTING] in rests):
            break
        top += f"{first}/"
    return top


def _listed(files: ImageFiles, top: str) -> dict[str, int]:
    """Return the labels in `dataset.json` by the names of images."""
    place = f"{top}{_LISTING} in {files.place}"
    expected = 'expected {"labels": [["NAME", 0], ...]} with whole numbers from 0, or null'
    try:
        content = parse_json(files.read(top + _LISTING), place)
    except UndecodableError as error:
        raise ValueError(f"{place} is damaged ({error}); {expected}") from None
    rows = content.get("labels", ()) if isinstance(content, dict) else ()
    if rows is not None and not isinstance(rows, list):
        raise ValueError(f"{place} is damaged (it holds no list of labels); {expected}")
    stored = {normalize("NFC", name): name for name in files.names()}
    labels: dict[str, int] = {}
    for row in rows or []:
        if not isinstance(row, list) or len(row) != 2 or not isinstance(row[0], str) or not _is_label(row[1]):
            raise ValueError(f"{place} is damaged (its row {repr(row)[:80]}); {expected}")
        name = normalize("NFC", PurePosixPath(top + row[0]).as_posix())
        name = stored.get(name, name)
        if name in labels:
            raise ValueError(f"{place} is damaged (it lists {row[0]!r} twice); {expected}")
        labels[name] = row[1]
    return labels


def _is_label(value: Any) -> bool:
    """Return whether a value is a class number; True is none."""
    return type(value) is int and 0 <= value < 2**31


def are_numbers(classes: Sequence[str]) -> bool:
    """Return whether classes have no names but their numbers."""
    return list(classes) == [str(label) for label in range(len(classes))]


def shown(value: Any) -> str:
    """Return a value for messages, at most 100 characters."""
    text = ", ".join(value) if isinstance(value, list) and all(isinstance(each, str) for each in value) else repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _differs(files: ImageFiles, found: list[str], classes: Sequence[str]) -> ValueError:
    """Return the error for classes of another numbering."""
    more = [name for name in found if name not in classes] or found
    return ValueError(
        f"{files.place} has the classes {shown(more)}, which are not among those of the training data or of the same "
        f"folder: {shown(list(classes))}; expected classes of one numbering"
    )
