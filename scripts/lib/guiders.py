"""The guiders of a guidance that is written as a config."""

from __future__ import annotations

from typing import Any

__all__ = ["with_guider"]


def with_guider(written: Any, images: str) -> Any:
    """Return a copy of the config `written` with `images`, a number or a fraction, as the age of the run's snapshots.

    Snapshots of other runs keep theirs.
    """
    if isinstance(written, list):
        return [with_guider(each, images) for each in written]
    if not isinstance(written, dict):
        return written
    changed = {key: with_guider(each, images) for key, each in written.items()}
    arguments = changed.get("init_args") or {}
    if str(changed.get("class_path")).endswith("Snapshot") and "run" not in arguments:
        changed["init_args"] = arguments | {"images": images if "/" in images else int(images)}
    return changed
