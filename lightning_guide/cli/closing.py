"""The line with which a command of LightningCLI's ends: where its results lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from callbacks import EvaluationSamples, GracefulStop, MetricsReport, SampleWriter
from callbacks.output import output_folder

__all__ = ["Results"]


class Results:
    """Files and folders to which `trainer` writes, as they are before a command."""

    def __init__(self, trainer: pl.Trainer, command: str) -> None:
        """Look at what is there."""
        self.trainer, self.command = trainer, command
        self._before = {path: _modified(path) for paths in self._places().values() for path in paths}

    def line(self) -> str:
        """Return one line that names what the command wrote: page, samples, images and metrics, model, config."""
        written: dict[str, list[str]] = {}
        for what, paths in self._places().items():
            for path in paths:
                if _modified(path) != self._before.get(path):
                    named = f"{_contents(path)} in" if what == "reported" else what
                    written.setdefault(named, []).append(str(path))
        parts = [f"{what} {', '.join(paths)}" for what, paths in written.items()]
        how = f"was stopped after step {self.trainer.global_step}" if self.stopped else "has ended"
        return f"{self.command} {how}; " + ("; ".join(parts) if parts else "it wrote no files")

    def finished(self) -> str:
        """Return which evaluations were finished before the command was left, and where their results are."""
        results = getattr(getattr(self.trainer.lightning_module, "evaluations", None), "results", {})
        reports = [each for each in self.trainer.callbacks if isinstance(each, MetricsReport)]  # type: ignore[attr-defined]
        if not reports or self.command not in ("validate", "test"):
            return ""
        files = ", ".join(str(output_folder(self.trainer, each.folder) / "metrics.json") for each in reports)
        return f"results of {', '.join(results)} are in {files}" if results else "no evaluation was finished"

    @property
    def stopped(self) -> bool:
        """Whether a signal stopped the fit."""
        return any(isinstance(each, GracefulStop) and each.stopped for each in self.trainer.callbacks)  # type: ignore[attr-defined]

    def _places(self) -> dict[str, list[Path]]:
        run = Path(self.trainer.default_root_dir)
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        own = [
            each
            for each in callbacks
            if isinstance(each, EvaluationSamples | MetricsReport) and hasattr(each, "folder")
        ]
        folders = {
            output_folder(self.trainer, each.folder, default=getattr(each, "default_folder", "report")) for each in own
        }
        samples = [each.written for each in callbacks if isinstance(each, SampleWriter)]
        return {
            "page": [run / "report.html"],
            "samples in": [path for path in samples if path is not None],
            "reported": sorted({run / "report", *folders}),
            "rounds in": [run / "rounds"],
            "model in": [run / "snapshots", run / "half_life" / "snapshots"],
            "checkpoints in": [run / "checkpoints"],
            "config": [run / ("config.yaml" if self.command == "fit" else f"config.{self.command}.yaml")],
        }


_OF_EVERY_RUN = ("environment.json", "history.jsonl")  # neither images nor metrics


def _contents(folder: Path) -> str:
    """Return which of images and metrics are in a folder."""
    suffixes = {path.suffix for path in folder.glob("*") if path.name not in _OF_EVERY_RUN}
    found = [what for what, suffix in (("images", ".png"), ("metrics", ".json")) if suffix in suffixes]
    return " and ".join(found) or "files"


def _modified(path: Path) -> int | None:
    """Time of the last change of a file, or of the files in a folder; None if there is none."""
    if not path.is_dir():
        return path.stat().st_mtime_ns if path.exists() else None
    return max((each.stat().st_mtime_ns for each in path.iterdir() if each.name not in _OF_EVERY_RUN), default=None)
