"""Going back in a run: the run as it was becomes a folder of its own, RUN/branches/N, and the run continues before it.

`RUN/branches/N` is a complete run folder: it is continued, evaluated and reported like any other. What lies before the
branching point is in both; large files are hard links and take no space.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from lightning_guide.runs.checkpoints import (
    checkpoint_folder,
    checkpoint_step,
    own_checkpoints,
    record_checkpoints,
    recorded_branch,
    recorded_validated,
)
from lightning_guide.snapshots import SnapshotStore
from lightning_guide.utils.files import atomic

__all__ = ["STORES", "check_branch", "finish_branch", "later_files", "set_aside"]


STORES = ("snapshots", "half_life/snapshots")
_COPIED = (
    *("config.yaml", "report.html", "report/metrics.json", "report/environment.json"),
    *("report/history.jsonl", "rounds/history.jsonl"),
)
_RESULTS = ("report.html", "report/metrics.json")  # of the newest model, which is set aside
_GRID = re.compile(r"(?:fit|validate|test)-(\d+)-.*\.png")


def later_files(run: str | Path, *, step: int, images: int) -> list[str]:
    """Return the files of the run, relative to its folder, that belong to a time after `step` and `images`."""
    folder = Path(run)
    found = [path for path in own_checkpoints(folder) if checkpoint_step(path) > step]
    for part in STORES:
        found += [entry.path for entry in SnapshotStore(folder / part).entries() if entry.images > images]
    grids = ((_GRID.fullmatch(path.name), path) for path in folder.glob("grids/*.png"))
    found += [path for match, path in grids if match and int(match[1]) > images]
    return [str(path.relative_to(folder)) for path in found]


def set_aside(run: str | Path, *, checkpoint: str | Path | None, step: int, images: int) -> Path:
    """Make RUN/branches/N of the run as it is, and remove what is later than `checkpoint` from RUN; return the branch.

    `step` and `images` are those of `checkpoint`, which becomes the newest of the run; None: the run starts again. A
    process killed inside leaves either the old run or the new one; `finish_branch` removes what is left over.
    """
    folder = Path(run)
    branch = recorded_branch(folder)
    number = 1 + max((int(p.name) for p in folder.glob("branches/*") if p.name.isdecimal()), default=0)
    number = max(number, branch.get("number", 0) + 1)
    target, building = folder / "branches" / str(number), folder / "branches" / f".{number}.tmp"
    shutil.rmtree(building, ignore_errors=True)  # of a process that was killed here
    for file in _files(folder):
        _link(folder / file, building / file)
    old = {key: value for key, value in branch.items() if key != "set_aside"}
    linked = [checkpoint_folder(building) / path.name for path in own_checkpoints(folder)]
    record_checkpoints(building, linked, old, validated=recorded_validated(folder))
    os.replace(building, target)
    earlier = [path for path in own_checkpoints(folder) if checkpoint_step(path) <= step]
    gone = later_files(folder, step=step, images=images) + [file for file in _RESULTS if (folder / file).is_file()]
    if checkpoint is not None and step not in map(checkpoint_step, earlier):
        own = checkpoint_folder(folder) / f"step-{step:09d}.ckpt"
        with atomic(own) as temporary:
            shutil.copyfile(checkpoint, temporary)
        earlier.append(own)
    from_steps = {**branch.get("from_steps", {}), str(number): step}
    record_checkpoints(folder, earlier, {"number": number, "from_steps": from_steps, "set_aside": gone})
    finish_branch(folder)
    return target


def check_branch(run: str | Path, *, checkpoint: object, number: int, step: int) -> None:
    """Refuse a checkpoint of a branch that was set aside, later than where the run went back; `number` is its branch.

    Raises:
        ValueError: naming the folder in which it is continued.
    """
    branch = recorded_branch(run)
    for later, from_step in sorted((int(key), int(value)) for key, value in branch.get("from_steps", {}).items()):
        if later > number and step > from_step:
            folder = Path(run) / "branches" / str(later)
            raise ValueError(
                f"{checkpoint}, of step {step}, belongs to what the run was before it went back to step {from_step}, "
                f"which is kept in {folder}; expected --trainer.default_root_dir {folder} to continue it"
            )


def finish_branch(run: str | Path) -> None:
    """Remove the files that the newest branch holds and that are no longer part of the run."""
    folder, branch = Path(run), recorded_branch(run)
    gone = [str(file) for file in branch.get("set_aside", [])]
    if not gone:
        return
    held = folder / "branches" / str(branch["number"])
    for file in gone:
        if (held / file).is_file():
            (folder / file).unlink(missing_ok=True)
    for part in STORES:
        SnapshotStore(folder / part).forget([Path(file).name for file in gone if Path(file).parent == Path(part)])
    record_checkpoints(folder, own_checkpoints(folder), branch | {"set_aside": []})


def _files(folder: Path) -> Iterator[str]:
    """Yield the files of a run, relative to its folder: only those that a run writes itself."""
    yield from (file for file in _COPIED if (folder / file).is_file())
    found = own_checkpoints(folder)
    for part in STORES:
        entries = SnapshotStore(folder / part).entries()
        found += [entry.path for entry in entries]
        found += [folder / part / "index.json"] if entries else []
    found += [path for path in folder.glob("grids/*.png") if _GRID.fullmatch(path.name)]
    own = f".{os.uname().nodename}.{os.getpid()}."  # the file of this process, which only begins
    found += [path for path in folder.glob("tensorboard/events.out.tfevents.*") if own not in path.name]
    yield from (str(path.relative_to(folder)) for path in found)


def _link(source: Path, target: Path) -> None:
    """Link a file that is only ever replaced as a whole; copy one that may be written in place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix in (".ckpt", ".safetensors", ".png") or "tfevents" in source.name:
        try:
            os.link(source, target)
            return
        except OSError:  # not on this file system
            pass
    shutil.copy2(source, target)
