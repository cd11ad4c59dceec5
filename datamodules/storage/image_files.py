"""Files of a folder, a zip archive or a tar archive, by their relative names (`ImageFiles`)."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from datamodules.storage.image_codec import SUFFIXES, UndecodableError
from datamodules.storage.tar_index import is_hidden, tar_members
from lightning_guide.utils.errors import did_you_mean

__all__ = ["ImageFiles", "image_files", "is_image"]


class ImageFiles(ABC):
    """Files of a folder or archive, by their relative names with slashes."""

    place: Path

    @abstractmethod
    def names(self) -> list[str]:
        """Return the names of all files that are not hidden, sorted."""

    def folders(self) -> list[str]:
        """Return the names of all folders that are not hidden, as far as the place lists them."""
        return []

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Raises:
            UndecodableError: if the file cannot be read, is damaged in an archive, encrypted, or compressed by an
                unknown method.
        """

    def state(self, names: Sequence[str]) -> str:
        """Return a hash that changes when one of the files `names` is replaced: of names, sizes and times."""
        found = [(name, *_size_and_time(path)) for name, path in self._paths(names)]
        return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]

    def _paths(self, names: Sequence[str]) -> list[tuple[str, Path]]:
        """Return the files on disk that hold the files `names`."""
        return [(name, self.place) for name in names]


def _size_and_time(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


class _Folder(ImageFiles):
    def __init__(self, place: Path) -> None:
        self.place = place

    def _paths(self, names: Sequence[str]) -> list[tuple[str, Path]]:
        return [(name, path) for name in names if (path := self.place / name).is_file()]

    def names(self) -> list[str]:
        return sorted(self._walk()[1])

    def folders(self) -> list[str]:
        return self._walk()[0]

    def read(self, name: str) -> bytes:
        try:
            return (self.place / name).read_bytes()
        except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
            raise UndecodableError(error.strerror or type(error).__name__) from None

    def _walk(self) -> tuple[list[str], list[str]]:
        """Return folders and files; links are followed, but not to a folder that they lie in."""
        folders: list[str] = []
        files: list[str] = []
        for folder, inside, found in os.walk(self.place, followlinks=True):
            at = os.path.realpath(folder) + os.sep
            inside[:] = [
                name
                for name in inside
                if not is_hidden(name) and not at.startswith(os.path.realpath(os.path.join(folder, name)) + os.sep)
            ]
            here = Path(folder).relative_to(self.place)
            folders += [(here / name).as_posix() for name in inside]
            files += [(here / name).as_posix() for name in found if not is_hidden(name)]
        return folders, files


class _Zip(ImageFiles):
    """A zip archive, opened separately by each process: loader workers must not share a file position."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._opened: tuple[int, zipfile.ZipFile, dict[str, zipfile.ZipInfo]] | None = None

    def names(self) -> list[str]:
        return sorted(self._archive()[1])

    def folders(self) -> list[str]:
        names = (_plain(info.filename) for info in self._archive()[0].infolist() if info.is_dir())
        return [name for name in names if not is_hidden(name)]

    def read(self, name: str) -> bytes:
        archive, files = self._archive()
        try:
            return archive.read(files[name])
        except Exception as error:  # damaged headers and streams, encryption, unknown methods: many types
            raise UndecodableError(f"{type(error).__name__}: {error}") from None

    def _archive(self) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                archive = zipfile.ZipFile(self.place)
            except OSError as error:
                raise ValueError(f"{self.place} cannot be opened: {error.strerror or error}") from None
            except Exception as error:  # of a damaged directory
                raise ValueError(
                    f"{self.place} is damaged or not a zip archive: {error}; expected a folder of images, a zip "
                    "archive or an uncompressed tar"
                ) from None
            _check_names(archive, self.place)
            infos = [info for info in archive.infolist() if not info.is_dir()]
            files = dict(zip(_checked([info.filename for info in infos], self.place), infos, strict=True))
            self._opened = os.getpid(), archive, {name: files[name] for name in files if not is_hidden(name)}
        return self._opened[1:]

    def __getstate__(self) -> dict[str, object]:
        return {"place": self.place, "_opened": None}


class _Tar(ImageFiles):
    """An uncompressed tar, whose files are read at their offsets."""

    def __init__(self, place: Path) -> None:
        self.place = place
        members = tar_members(place)
        places = zip(_checked([name for name, *_ in members], place), members, strict=True)
        self._files = {name: (offset, size) for name, (_, offset, size) in places if not is_hidden(name)}

    def names(self) -> list[str]:
        return sorted(self._files)

    def read(self, name: str) -> bytes:
        offset, size = self._files[name]
        with self.place.open("rb") as file:
            file.seek(offset)
            return file.read(size)


def image_files(place: str | Path) -> ImageFiles:
    """Open the files of a folder, or of a zip archive or an uncompressed tar.

    Raises:
        ValueError: if `place` does not exist or is damaged, or an archive holds a name twice, or a name that is
            absolute or leads out of it.
    """
    path = Path(place).expanduser()
    if path.is_dir():
        return _Folder(path)
    if not path.is_file():
        hint = did_you_mean(path)
        raise ValueError(f"{path} does not exist{hint}; expected a folder of images or a zip archive or tar of them")
    with path.open("rb") as file:
        is_tar = path.suffix.lower() == ".tar" or file.read(262)[257:] == b"ustar"
    return _Tar(path) if is_tar else _Zip(path)


def is_image(name: str) -> bool:
    """Return whether a file name is that of an image."""
    return PurePosixPath(name).suffix.lower() in SUFFIXES and not is_hidden(name)


def _check_names(archive: zipfile.ZipFile, place: Path) -> None:
    """Compare the number of files, and names in both places where an archive has them, as reading a file does.

    Names only of one image in each folder, which may be a class, and of entries that are no images: a damaged name may
    have made them so.
    """
    folders: set[str] = set()
    with place.open("rb") as file:
        file.seek(max(place.stat().st_size - 2**16 - 22, 0))
        end = file.read().rpartition(b"PK\5\6")[2]
    count = int.from_bytes(end[6:8], "little")  # of all entries; 2^16 - 1 is that or more
    if count not in (len(archive.infolist()), 2**16 - 1):
        raise ValueError(f"{place} is damaged: its directory lists {len(archive.infolist())} of {count} files")
    for info in archive.infolist():
        folder = info.filename.rpartition("/")[0]
        if folder in folders and is_image(info.filename):
            continue
        try:
            archive.open(info).close()
        except RuntimeError:  # encrypted, or of an unknown method: reading will tell if it is needed
            pass
        except Exception as error:
            raise ValueError(f"{place} is damaged: {error}") from None
        if is_image(info.filename):
            folders.add(folder)


def _plain(name: str) -> str:
    """Return a name without `./` and double slashes."""
    return PurePosixPath(name).as_posix()


def _checked(names: Iterable[str], place: Path) -> list[str]:
    """Return plain names; refuse ambiguous ones and those outside the archive."""
    plain = [_plain(name) for name in names]
    seen: set[str] = set()
    for name in plain:
        if name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise ValueError(f"{place} holds the file {name!r}; expected names inside the archive, without `..`")
        if name in seen:
            raise ValueError(f"{place} holds {name!r} twice; expected each file once")
        seen.add(name)
    return plain
