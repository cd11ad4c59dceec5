"""Checkpoints of a run: which of them the run wrote, the newest one, and checks of the file to be loaded.

`RUN/checkpoints.json` records the checkpoints in the order in which they were written. Only recorded files are
ever deleted, and the newest is the last that was recorded, whatever its number of steps.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_guide.utils.errors import did_you_mean
from lightning_guide.utils.files import atomic

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

__all__ = [
    "CHECKPOINT_NAME",
    "check_checkpoint",
    "checkpoint_folder",
    "checkpoint_step",
    "images_per_step",
    "newest_checkpoint",
    "own_checkpoints",
    "read_checkpoint",
    "read_whole",
    "recorded_branch",
    "record_checkpoints",
    "recorded_checkpoints",
    "recorded_validated",
    "remove_temporary_files",
]


CHECKPOINT_NAME = re.compile(r"step-(\d{9,})\.ckpt")
_RECORD = "checkpoints.json"
_TRAINING = ("optimizer_states", "lr_schedulers", "loops", "callbacks")  # keys without which no training is continued


def checkpoint_folder(run: str | Path) -> Path:
    """Return the folder of the checkpoints of a run."""
    return Path(run).expanduser() / "checkpoints"


def recorded_checkpoints(run: str | Path) -> list[Path]:
    """Return the checkpoints that the run wrote and that still exist, in the order in which they were written."""
    folder, names = checkpoint_folder(run), _record(run).get("checkpoints")
    names = [str(name) for name in names] if isinstance(names, list) else []
    return [folder / name for name in names if CHECKPOINT_NAME.fullmatch(name) and (folder / name).is_file()]


def record_checkpoints(
    run: str | Path,
    files: Sequence[Path],
    branch: Mapping[str, Any] | None = None,
    *,
    validated: Collection[str] | None = None,
) -> None:
    """Record `files`, in the order in which they were written, as the checkpoints of the run.

    `branch`, and the names `validated` of those after which the validation has ended, are by default as recorded.
    """
    path, known = Path(run) / _RECORD, recorded_validated(run) if validated is None else validated
    record = {
        "checkpoints": [file.name for file in files],
        "branch": recorded_branch(run) if branch is None else branch,
        "validated": sorted({file.name for file in files}.intersection(known)),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(record) + "\n", encoding="utf-8")


def recorded_branch(run: str | Path) -> dict[str, Any]:
    """Return what `branches.set_aside` recorded; empty for a run that never went back."""
    branch = _record(run).get("branch")
    return branch if isinstance(branch, dict) else {}


def recorded_validated(run: str | Path) -> set[str]:
    """Return the names of the recorded checkpoints after which the validation has ended."""
    names = _record(run).get("validated")
    return {str(name) for name in names} if isinstance(names, list) else set()


def own_checkpoints(run: str | Path) -> list[Path]:
    """Return the recorded checkpoints; without a record, as in runs of older versions, those of the names, by step."""
    if recorded := recorded_checkpoints(run):
        return recorded
    named = [path for path in checkpoint_folder(run).glob("step-*.ckpt") if CHECKPOINT_NAME.fullmatch(path.name)]
    return sorted(named, key=checkpoint_step)


def checkpoint_step(checkpoint: Path) -> int:
    """Return the optimizer step after which a checkpoint was written, from its name."""
    return int(checkpoint.stem.removeprefix("step-"))


def remove_temporary_files(run: str | Path) -> None:
    """Remove checkpoints that a killed process left unfinished, also those of older versions; no other dot files."""
    for stray in checkpoint_folder(run).glob(".step-*.tmp"):
        if CHECKPOINT_NAME.fullmatch(re.sub(r"(\.[0-9a-f]{8})?\.tmp$", "", stray.name[1:])):
            stray.unlink(missing_ok=True)


def newest_checkpoint(run: str | Path) -> Path | None:
    """Return the complete checkpoint that the run wrote last, or None; see `own_checkpoints`."""
    return next(reversed(own_checkpoints(run)), None)


def images_per_step(run: str | Path) -> float | None:
    """Return the images that a run saw in each step on average, by its newest checkpoint; None without a whole one."""
    newest = newest_checkpoint(run)
    try:
        content = {} if newest is None else torch.load(newest, map_location="cpu", weights_only=True, mmap=True)
        images = content["clock"]["images_seen"] if "clock" in content else content["images_seen"]
        return float(images / content["global_step"])
    except Exception:  # damaged in any way, or of the first step
        return None


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return the content of a checkpoint of Lightning's, on the CPU; nothing in it is executed.

    Raises:
        ValueError: saying what the file is, if it is missing, damaged or something else.
    """
    file = Path(path)
    if not file.is_file():
        others = ", ".join(sorted(other.name for other in file.parent.glob("*.ckpt"))) or "none"
        what = "is a folder" if file.is_dir() else f"does not exist{did_you_mean(file.parent)}"
        raise ValueError(f"the checkpoint {path} {what}; checkpoints in its folder: {others}")
    if foreign := _foreign(file):
        raise ValueError(f"{path} is {foreign}; expected a checkpoint of this run, RUN/checkpoints/step-N.ckpt")
    try:
        content = _load_whole(file)
    except Exception as error:  # the zip file, its pickle or its tensors may be damaged in any way
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        if isinstance(error, UnpicklingError) or "TorchScript" in reason:  # in a file whose checksums are right
            found = re.search(r"GLOBAL (\S+)", str(error))
            named = f" ({found[1]})" if found else ""
            raise ValueError(
                f"{path} is a file of another program: it holds objects{named} besides tensors and plain data, and "
                "loading them would run code; expected a checkpoint of this run, RUN/checkpoints/step-N.ckpt"
            ) from None
        raise ValueError(
            f"the checkpoint {path} is damaged ({reason}); expected a whole one: name another with --ckpt_path, or "
            "move this one away to continue from the one before it"
        ) from None
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), Mapping):
        raise ValueError(
            f"{path} is {_content(content)}, not a checkpoint; expected one of this run, RUN/checkpoints/step-N.ckpt"
        )
    return content


def _load_whole(file: Path) -> Any:
    """Return the content of a file of PyTorch's; raise any error if it is not whole."""
    with zipfile.ZipFile(file) as archive:
        if (broken := archive.testzip()) is not None:  # torch does not compare the checksums
            raise ValueError(f"the checksum of {broken} in it is wrong")
    return torch.load(file, map_location="cpu", weights_only=True, mmap=True)


def read_whole(file: Path, *, keys: Sequence[str]) -> dict[str, Any]:
    """Return the content of a file of PyTorch's, a dict with `keys`, on the CPU; nothing in it is executed.

    Raises:
        ValueError: saying why it cannot be read.
    """
    try:
        content = _load_whole(file)
    except Exception as error:  # of many types
        raise ValueError((str(error).splitlines() or [""])[0] or type(error).__name__) from None
    if not isinstance(content, dict) or any(key not in content for key in keys):
        raise ValueError(f"it holds {_content(content)}, expected {', '.join(keys)}")
    return content


def check_checkpoint(path: str | Path, module: LightningModule, *, training: bool) -> dict[str, Any]:
    """Check that a checkpoint is whole and belongs to `module`, and return its content.

    With `training` it must hold what continues a training, otherwise weights are enough.

    Raises:
        ValueError: as `read_checkpoint`, or if something is missing, or a weight differs (the first one is named).
    """
    content = read_checkpoint(path)
    unsaved = getattr(module, "unsaved", None)  # held by checkpoints of older versions
    weights = {k: w for k, w in content["state_dict"].items() if unsaved is None or not k.startswith(unsaved)}
    stored = {name: tuple(weight.shape) for name, weight in weights.items() if isinstance(weight, Tensor)}
    needed = {name: tuple(weight.shape) for name, weight in module.state_dict().items()}
    if not stored.keys() & needed.keys():
        names = f"{len(weights)} weights such as {next(iter(weights), None)!r}"
        raise ValueError(
            f"the checkpoint {path} is that of another module: it holds {names}, {type(module).__name__} has "
            f"{len(needed)} such as {next(iter(needed), None)!r}; expected a checkpoint of this run"
        )
    wrong = sorted(name for name in stored.keys() | needed.keys() if stored.get(name) != needed.get(name))
    if wrong:
        raise ValueError(
            f"the checkpoint {path} holds another model than the config describes: {len(wrong)} weights differ, first "
            f"{wrong[0]!r}, stored {stored.get(wrong[0], 'nothing')}, expected {needed.get(wrong[0], 'nothing')}; use "
            "the config the run began with, or another trainer.default_root_dir"
        )
    missing = [key for key in _TRAINING if key not in content] if training else []
    if missing:
        raise ValueError(
            f"the checkpoint {path} holds weights alone and no {', '.join(missing)}, so training cannot continue from "
            "it; expected a checkpoint that fit has written (validate, test and predict accept this one)"
        )
    return content


def _record(run: str | Path) -> dict[str, Any]:
    """Return the content of the record, empty if there is none."""
    try:
        content = json.loads((Path(run) / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _foreign(file: Path) -> str | None:
    """Say what a file is that is no zip archive of PyTorch's, None if it is one."""
    with file.open("rb") as stream:
        start = stream.read(512)
    if not start:
        return "an empty file"
    if start[:2] == b"PK":
        try:
            with zipfile.ZipFile(file) as archive:
                names = archive.namelist()
        except Exception:  # of many types: cut off or damaged
            return None
        return None if any(name.endswith("data.pkl") for name in names) else "a zip archive without weights"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**32:
        return _safetensors(file)
    if start[:1] == b"\x80":
        return "a pickle, or a file of an old PyTorch, and not the archive that a checkpoint is"
    if start[:8] == b"\x89HDF\r\n\x1a\n":
        return "an HDF5 file"
    if start[:2] == b"\x1f\x8b":
        return "a gzip archive"
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, perhaps in place of a download"
    if text.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, whose file was not fetched"
    return "a text file" if all(32 <= byte or byte in b"\t\r\n\f" for byte in start) else "no checkpoint"


def _safetensors(file: Path) -> str:
    """Say which safetensors file it is."""
    try:
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        about = header.get("__metadata__") or {}
        images, sigma_rel = about["images"], float(about["sigma_rel"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "a safetensors file of weights, which holds no state of training"
    which = f"the average sigma_rel={sigma_rel:g}" if sigma_rel else "the raw weights"
    return (
        f"a snapshot, {which} after {images} images, which holds no state of training (evaluate it with "
        "--model.images, or start from it with denoiser: lightning_guide.runs.pretrained)"
    )


def _content(content: Any) -> str:
    """Say what the content of a file of PyTorch's is."""
    if isinstance(content, Mapping) and content and all(isinstance(value, Tensor) for value in content.values()):
        return f"a bare state dict of {len(content)} tensors such as {next(iter(content))!r}"
    if isinstance(content, Mapping):
        return f"a dict with {', '.join(map(str, list(content)[:6])) or 'nothing'}"
    return f"a {type(content).__name__}"
