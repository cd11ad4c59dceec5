"""Images, tables, texts and settings in any Lightning logger, by what it can take; called on process 0.

Three kinds of loggers take more than scalars: those with `log_image` and `log_table` of their own (Weights & Biases),
those whose experiment is a `SummaryWriter` (TensorBoard), and those whose experiment stores files of a run (MLflow).
For the others, such as `CSVLogger`, the files that callbacks write are all there is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger
from torch import Tensor

__all__ = ["log_chart_layout", "log_image", "log_settings", "log_step", "log_table", "log_text", "markdown_table"]


def log_step(trainer: Trainer) -> int:
    """Return x of results in loggers: the step of the evaluated model, else the global step."""
    return int(getattr(trainer.lightning_module, "evaluated_step", trainer.global_step))


def log_image(trainer: Trainer, tag: str, image: Tensor, *, step: int | None = None) -> None:
    """Log `image` (1 or 3, H, W), uint8, as `tag` at `step` (default: `log_step`)."""
    step = log_step(trainer) if step is None else step
    for logger in trainer.loggers:
        experiment = _experiment(logger)
        if hasattr(logger, "log_image"):
            logger.log_image(tag, [_pixels(image)], step=step)
        elif hasattr(experiment, "add_image"):
            experiment.add_image(tag, image, step)
        elif _keeps_files(logger):
            experiment.log_image(_run(logger), _pixels(image), key=_plain(tag), step=step)


def log_text(trainer: Trainer, tag: str, text: str, *, step: int | None = None) -> None:
    """Log Markdown `text` as `tag` at `step` (default: `log_step`)."""
    step = log_step(trainer) if step is None else step
    for logger in trainer.loggers:
        if hasattr(logger, "log_table"):
            logger.log_table(tag, columns=["text"], data=[[text]], step=step)
        else:
            _log_markdown(logger, tag, text, step)


def log_table(trainer: Trainer, tag: str, rows: Sequence[Sequence[str]], *, notes: Sequence[str] = ()) -> None:
    """Log a table, whose first of `rows` is the header, and `notes` below it, at `log_step`."""
    text = "\n\n".join(["\n".join(markdown_table(rows)), *notes])
    for logger in trainer.loggers:
        if hasattr(logger, "log_table") and rows:
            logger.log_table(tag, columns=list(rows[0]), data=[list(row) for row in rows[1:]], step=log_step(trainer))
        else:
            _log_markdown(logger, tag, text, log_step(trainer))


def log_settings(trainer: Trainer, settings: Mapping[str, Any], results: Mapping[str, float] | None = None) -> None:
    """Log `settings` to all loggers; with `results` only to those that compare runs by both (TensorBoard's hparams)."""
    for logger in trainer.loggers:
        if results is None:
            logger.log_hyperparams(dict(settings))
        elif results and hasattr(_experiment(logger), "add_hparams"):
            logger.log_hyperparams(dict(settings), dict(results), log_step(trainer))


def log_chart_layout(trainer: Trainer, metrics: Sequence[str]) -> None:
    """Show each metric of all evaluations on one chart, in TensorBoard's custom scalars."""
    charts = {metric: ["Multiline", [rf"(?!final/).*/{re.escape(metric)}$"]] for metric in metrics}
    for logger in trainer.loggers:
        if charts and hasattr(_experiment(logger), "add_custom_scalars"):
            _experiment(logger).add_custom_scalars({"evaluations": charts})


def markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table; the first of `rows` is the header."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    if lines:
        lines.insert(1, "| :-- |" + " --: |" * (len(rows[0]) - 1))
    return lines


def _log_markdown(logger: Logger, tag: str, text: str, step: int) -> None:
    experiment = _experiment(logger)
    if hasattr(experiment, "add_text"):
        experiment.add_text(tag, text, step)
    elif _keeps_files(logger):
        experiment.log_text(_run(logger), text, f"{_plain(tag)}/{step:09d}.md")


def _experiment(logger: Logger) -> Any:
    return getattr(logger, "experiment", None)


def _keeps_files(logger: Logger) -> bool:
    return hasattr(logger, "run_id") and hasattr(_experiment(logger), "log_text")


def _run(logger: Logger) -> Any:
    return getattr(logger, "run_id", None)


def _pixels(image: Tensor) -> Any:
    """Return `image` (C, H, W) as an array (H, W, 3)."""
    return image.expand(3, -1, -1).permute(1, 2, 0).contiguous().cpu().numpy()


def _plain(tag: str) -> str:
    """Return `tag` in the characters that MLflow's names may have."""
    return re.sub(r"[^\w./ -]", "_", tag)
