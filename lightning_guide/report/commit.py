"""Git commit of the code, if it is a checkout."""

from __future__ import annotations

import subprocess
from pathlib import Path

__all__ = ["code_commit"]


def code_commit(folder: str | Path) -> str | None:
    """Return the commit of the files in `folder`, with "+ changes" if some differ from it; None outside of a checkout.

    Installed packages below the folder of another repository are not part of it.
    """
    try:
        if not _git(folder, "ls-files", "--", "."):
            return None
        commit = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ".")
    except (OSError, subprocess.SubprocessError):  # no git, no repository, no commit
        return None
    return commit + (" + changes" if changed else "")


def _git(folder: str | Path, *words: str) -> str:
    """Return what a command of git prints."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
