"""Results of a command, read so that two runs of it can be compared bit for bit (`read_results`, `differences`).

Left out is what legitimately differs: times and durations, intervals of durations, the progress of Lightning's loops in
checkpoints, the names of event files (their curves are compared), the log folder of each call of predict, the facts
about the machine in environment.json, locks, and small temporary files, which a fit removes when they are a minute old.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from lightning_guide.report.history import HISTORY, read_history
from scripts.robustness.subject import digest

__all__ = ["differences", "read_results"]

_TIMES = ("seconds", "time", "times", "half_widths")
_LEFT_OUT = re.compile(
    r"(^|/)(\.lock$|environment\.json$|tensorboard/predict|((report|grids)/\.|\.(config|checkpoints|report)\.).*\.tmp$)"
)
_COST = ".total"
_OF_LOOPS = ("loops", "epoch")  # counted anew in a resumed fit


def read_results(folder: Path) -> dict[str, Any]:
    """Return file -> content of all files below `folder`, as plain data."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or _LEFT_OUT.search(name):
            continue
        if "tfevents" in path.name:
            found[f"{path.parent.relative_to(folder)}/curves"] = _curves(path.parent)
        else:
            found[name] = _content(path)
    return found


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Return the places, FILE/KEY/..., at which two results differ, or that are missing in either."""
    if type(one) is type(other) and isinstance(one, dict):
        keys = sorted(one.keys() | other.keys())
        return [place for key in keys for place in differences(one.get(key), other.get(key), f"{where}/{key}")]
    if type(one) is type(other) and isinstance(one, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [place for i, pair in pairs for place in differences(*pair, f"{where}/{i}")]
    return [] if one == other else [f"{where} ({str(one)[:60]}, expected {str(other)[:60]})"]


def _content(path: Path) -> Any:
    if path.name.startswith("."):
        return path.name  # a temporary file that was left
    if path.match(HISTORY):
        curves = read_history(path.parents[1]).scalars
        return {tag: [list(point) for point in points] for tag, points in curves.items() if not _is_time(tag)}
    if path.suffix == ".ckpt":
        content = torch.load(path, map_location="cpu", weights_only=True)
        return _plain({key: value for key, value in content.items() if key not in _OF_LOOPS})
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:  # the bytes of its header have no fixed order
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            metadata = file.metadata()
        if _COST in tensors:  # of a block of a search: network calls, samples and seconds
            tensors[_COST] = tensors[_COST][:2]
        return _plain([tensors, metadata])
    if path.suffix in (".json", ".jsonl"):
        return [_plain(json.loads(line)) for line in _documents(path)]
    if path.suffix == ".html":
        return ""  # made of files that are compared; shows durations
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _documents(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    return text.splitlines() if path.suffix == ".jsonl" else [text]


def _plain(node: Any) -> Any:
    """Return hashes in place of tensors; leave out times."""
    if isinstance(node, Tensor):
        return digest(node)
    if isinstance(node, dict):
        return {str(key): _plain(value) for key, value in node.items() if not _is_time(str(key))}
    return [_plain(value) for value in node] if isinstance(node, list | tuple) else node


def _is_time(key: str) -> bool:
    return bool(re.search(rf"(^|[_/])({'|'.join(_TIMES)})$", key))


def _curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return tag -> points of the scalars in event files; those of a repeated validation once if they are the same."""
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    log = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    log.Reload()
    return {
        tag: list(dict.fromkeys((event.step, event.value) for event in log.Scalars(tag)))
        for tag in log.Tags()["scalars"]
        if not _is_time(tag)
    }
