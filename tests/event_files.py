"""Event files as TensorBoard shows them."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_guide.report.history import event_files

Curves = dict[str, list[tuple[int, float]]]


def opened(folder: Path | str) -> EventAccumulator:
    """Read all events in a folder, or of a file."""
    log = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    log.Reload()
    return log


def shown(folder: Path) -> Curves:
    """Return the curves of one run in TensorBoard: tag -> (step, value).

    Its data server drops the points of a tag from the step of a later event on, which `EventAccumulator` does not.
    """
    curves: Curves = {}
    for log in map(opened, event_files(folder)):
        for tag in log.Tags()["scalars"]:
            curve = curves.setdefault(tag, [])
            for event in log.Scalars(tag):
                while curve and curve[-1][0] >= event.step:
                    curve.pop()
                curve.append((event.step, event.value))
    return curves
