"""Folders of loggers: no command writes over, or into, the logs of another one."""

from __future__ import annotations

from itertools import count
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

__all__ = ["use_own_folder"]


@rank_zero_only
def use_own_folder(logger: Logger, command: str) -> None:
    """Let a logger of files whose folder is fixed log to a new one inside it, `<folder>/<command>_<n>`.

    `CSVLogger` deletes the earlier file in its folder. TensorBoard drops the points of a curve behind a smaller step,
    and reads only the newest file of a folder, so only a resumed fit belongs into the folder of the fit. Loggers that
    number their folders, or log to a server, stay as they are.
    """
    if not isinstance(logger, CSVLogger | TensorBoardLogger) or logger._version is None:
        return
    folder = Path(logger.log_dir)
    if command == "fit" and (isinstance(logger, TensorBoardLogger) or not (folder / "metrics.csv").is_file()):
        return
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    logger._version = str(Path(version, _new_folder(folder, command)))


def _new_folder(folder: Path, command: str) -> str:
    """Create `<command>_<n>` with the smallest free n in `folder` and return its name; two processes get two."""
    for number in count():
        try:
            (folder / f"{command}_{number}").mkdir(parents=True)
        except FileExistsError:
            continue
        return f"{command}_{number}"
    raise AssertionError
