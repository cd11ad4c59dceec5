"""Metrics report of all evaluations: a JSON file, a table on the terminal and one in the loggers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

from callbacks.loggers import log_table
from callbacks.output import output_folder, unwritable_output
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.report.metrics_file import merge_results, read_facts
from lightning_guide.report.tables import Extractors, align_columns, format_number, judge_networks, metric_rows
from lightning_guide.utils.files import atomic
from lightning_guide.utils.resume import plain_data
from lightning_guide.utils.terminal import counted, show

__all__ = ["MetricsReport"]


Results = Mapping[str, Mapping[str, float]]


class MetricsReport(pl.Callback):
    """Report at the end of each validation and test: `metrics.json`, a table on the terminal and one in the loggers.

    After a fit, the results of each evaluation are written as soon as it is finished, so that a command that is stopped
    loses none of them.

    Below the table the terminal shows the held-out loss. Of a module without evaluations it shows what was logged, and
    nothing is written.

    The file maps evaluation -> metric -> value of the newest results; values that are not finite are null. `of` names
    the command, the evaluated model and a hash of the settings, and `earlier` holds the results of others: those of a
    fit and of later commands stand side by side (`lightning_guide.report.metrics_file`). `extractors` maps the names of
    metrics to their feature networks, each with a hash of its weights. Evaluations that were skipped are listed below
    the tables, with the reason. In loggers the table is `report/metrics`, at the step of the evaluated model.
    """

    default_folder = "report"

    def __init__(self, folder: str | None = None) -> None:
        """Configure the `folder` of `metrics.json`; None is `report` in the run folder."""
        super().__init__()
        self.folder = folder
        self._written: Results = {}

    def missing(self, trainer: pl.Trainer, module: Any) -> Iterator[str]:
        """Yield a sentence if the files cannot be written."""
        yield from unwritable_output(trainer, self)

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any, **__: Any) -> None:
        """Write the results of an evaluation that was finished, on process 0."""
        found = getattr(getattr(pl_module, "evaluations", None), "results", {})
        if found and found is not self._written and trainer.is_global_zero and trainer.state.fn != "fit":
            with pl_module.evaluations.contain(type(self).__name__):
                self._write(trainer, pl_module)

    on_test_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Report the results, on process 0."""
        self._report(trainer, pl_module)

    def on_test_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Report the results, on process 0."""
        self._report(trainer, pl_module)

    def _report(self, trainer: pl.Trainer, module: DiffusionModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        if not hasattr(module, "evaluations"):
            show("\n" + "\n".join(align_columns(metric_rows({"model": _logged(trainer, "")}))) + "\n")
            return
        with module.evaluations.contain(type(self).__name__):
            self._show(trainer, module)

    def _show(self, trainer: pl.Trainer, module: DiffusionModule) -> None:
        """Print the table, then write it: the numbers are shown on a read-only disk, too."""
        results, evaluations = module.evaluations.results, module.evaluations
        table = metric_rows(results)
        notes = judge_networks(evaluations.extractors)
        notes += [f"skipped: {name} ({reason})" for name, reason in evaluations.skipped.items()]
        notes += [f"failed: {what} ({reason})" for what, reason in evaluations.failed.items()]
        errors = [f"{format_number(x)} at {name.replace('_', ' ')}" for name, x in _logged(trainer, "heldout/").items()]
        lines = [*align_columns(table), *notes, *([f"held-out loss: {', '.join(errors)}"] if errors else [])]
        if lines:
            when = [f"after {counted(module.images_seen, 'image')}"] if trainer.state.fn == "fit" else []
            show("\n".join(["", *when, *lines, ""]))
        self._write(trainer, module)
        if table or notes:
            log_table(trainer, "report/metrics", table, notes=notes)

    def _write(self, trainer: pl.Trainer, module: DiffusionModule) -> None:
        """Add the results to the file."""
        self._written = module.evaluations.results
        folder = output_folder(trainer, self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        found = _plain(self._written, module.evaluations.extractors)
        evaluations, of = module.evaluations.evaluations, _of(module)
        for name, values in found.items():
            values["of"] = of | ({"settings": evaluations[name].fingerprint} if name in evaluations else {})
        merged = merge_results(_known(folder / "metrics.json"), found)
        with atomic(folder / "metrics.json") as temporary:
            temporary.write_text(json.dumps(merged, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _logged(trainer: pl.Trainer, prefix: str) -> dict[str, float]:
    """Return the newest logged values whose names begin with `prefix`, without it."""
    logged = trainer.callback_metrics.items()
    # a wait for each value, at the end of a validation: they are written to a file
    return {name.removeprefix(prefix): float(value) for name, value in logged if name.startswith(prefix)}


def _known(path: Path) -> dict[str, dict[str, Any]]:
    """Return the content of the file; one that is damaged is kept under another name."""
    try:
        return read_facts(path)
    except ValueError as error:
        kept = path.with_suffix(".damaged")
        os.replace(path, kept)
        rank_zero_warn(f"{error}; it is kept as {kept}, and the new results alone are in {path.name}")
        return {}


def _of(module: DiffusionModule) -> dict[str, Any]:
    """Return the command and the model that it evaluated."""
    trainer = module.trainer
    average = None if module.average is None else module.average.value
    of = {"command": str(trainer.state.fn and trainer.state.fn.value), "images": module.evaluated_images}
    other = module.run is not None and Path(module.run).resolve() != Path(trainer.default_root_dir).resolve()
    return of | {"average": average} | ({"run": str(module.run)} if other else {})


def _plain(results: Results, extractors: Extractors) -> dict[str, dict[str, Any]]:
    """Return the results as plain data, without NaN and infinity."""
    values: dict[str, dict[str, Any]] = plain_data(
        {name: {metric: float(value) for metric, value in metrics.items()} for name, metrics in results.items()}
    )
    for name, metrics in extractors.items():
        if named := {metric: identities for metric, identities in metrics.items() if identities}:
            values[name]["extractors"] = named
    return values
