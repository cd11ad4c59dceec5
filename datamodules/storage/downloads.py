"""Local copies of remote shards, fetched once.

A copy on a local disk can be indexed, so that runs on remote data resume as exactly as runs on local data.
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
    """Return whether `name` is a URL and not a path.

    Examples:
        >>> [is_url(name) for name in ("https://host/a.tar", "pipe:cat a.tar", "data/a.tar")]
        [True, True, False]
    """
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", name) is not None


class Downloads:
    """Folder of local copies of shards, which processes can share: only complete copies appear there."""

    def __init__(self, folder: str | Path) -> None:
        """Set the folder; nothing is fetched yet."""
        self.folder = Path(folder).expanduser()
        self.urls: dict[Path, str] = {}

    def path(self, url: str) -> Path:
        """Return the path of the copy of `url`, fetched or not."""
        end = re.sub(r"[^\w.-]+", "-", url.split("?")[0].rsplit("/", 1)[-1])[-60:]
        path = self.folder / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{end}"
        self.urls[path] = url
        return path

    def fetch(self, paths: Iterable[Path]) -> None:
        """Fetch the missing copies among `paths`.

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
