"""The folder of a synthetic set: what it was made of, and who draws into it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_guide.utils.distributed import run_on_all_ranks
from lightning_guide.utils.files import remove_temporary
from lightning_guide.utils.locks import FolderLock
from lightning_guide.utils.resume import ResumableFolder, check_same_settings

__all__ = ["SHARDS", "SyntheticFolder", "description_of"]


SHARDS = "synthetic-*.tar"


def description_of(folder: Path) -> Path:
    """Return the file that describes the set in `folder`: settings, class counts and the run."""
    return folder / "synthetic.json"


class SyntheticFolder:
    """The folder of a synthetic set of some settings."""

    def __init__(self, folder: Path, settings: dict[str, Any], counts: list[int]) -> None:
        """Take all settings that the samples depend on, and the number of samples of each class."""
        self.folder, self.counts = folder, counts
        self._record = ResumableFolder(description_of(folder), settings, results="*.tar")

    def check(self) -> None:
        """Refuse a folder whose set has other settings, or the same shares of data that have changed.

        Raises:
            ValueError: naming what differs.
        """
        content = self._record.read()
        if self._record.has_results(content):
            place = description_of(self.folder)
            check_same_settings({"counts": content.get("counts")}, {"counts": self.counts}, place=place)

    def write(self, *, run: str) -> None:
        """Write the description of the set, with the `run` that draws it."""
        self._record.write({"run": run, "counts": self.counts})

    @contextmanager
    def lock(self, shards: Iterable[Path], *, owner: bool) -> Iterator[None]:
        """Lock the folder while samples are drawn, on the `owner` for all ranks; a complete set can be used at once."""
        lock = FolderLock(self.folder / ".lock", what=f"the synthetic set {self.folder}")
        missing = owner and not all(path.is_file() for path in shards)

        def begin() -> None:
            if missing:
                lock.acquire()
                remove_temporary(self.folder, SHARDS)

        run_on_all_ranks(begin)
        try:
            yield
        finally:
            lock.release()
