"""Shards that lie elsewhere: fetched once, by whatever opens their URL, and read like local ones from then on.

A copy on a local disk can be indexed, so that runs on remote data resume as exactly as others.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from webdataset.gopen import gopen

__all__ = ["Downloads", "is_url"]


def is_url(name: str) -> bool:
    """Whether `name` is a URL, such as https://..., s3://..., or pipe:command, and no path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", name) is not None


class Downloads:
    """A folder of local copies of shards, which processes may share: a copy is there when it is whole."""

    def __init__(self, folder: str | Path) -> None:
        """Nothing is fetched yet."""
        self.folder = Path(folder)
        self.urls: dict[Path, str] = {}

    def path(self, url: str) -> Path:
        """Where the copy of `url` is, or will be."""
        end = re.sub(r"[^\w.-]+", "-", url.split("?")[0].rsplit("/", 1)[-1])[-60:]
        path = self.folder / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{end}"
        self.urls[path] = url
        return path

    def fetch(self, paths: Iterable[Path]) -> None:
        """Fetches those of `paths` that are copies and not there yet.

        Raises:
            ValueError: naming the URL, if it cannot be read to its end.
        """
        for path in paths:
            if path not in self.urls or path.exists():
                continue
            self.folder.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.{os.uname().nodename}-{os.getpid()}.part")
            try:
                with gopen(self.urls[path], "rb") as source, part.open("wb") as target:
                    shutil.copyfileobj(source, target, 2**20)
                if not part.stat().st_size:
                    raise OSError("it is empty")
                part.replace(path)
            except (OSError, ValueError) as error:
                raise ValueError(f"the shard {self.urls[path]!r} cannot be fetched to {self.folder}: {error}") from None
            finally:
                part.unlink(missing_ok=True)
