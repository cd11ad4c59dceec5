"""Training history of a run: the scalars in its TensorBoard files, grouped into charts."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from lightning_guide.report.charts import Points

__all__ = ["History", "read_history"]


_NO_METRIC = ("nfe", "samples", "seconds", "skipped", "unguided")


@dataclass(frozen=True)
class History:
    """Scalars of training by tag, over images seen (or steps, if images were not logged).

    Attributes:
        scalars: tag -> (x, value) pairs.
        x_label: unit of x, "images seen" or "steps".
        seconds: time from the first to the last logged value, pauses included.
    """

    scalars: dict[str, Points]
    x_label: str
    seconds: float

    def charts(self) -> dict[str, dict[str, Points]]:
        """Return title -> name -> points: losses by noise level, learning rate, and each metric over all evaluations.

        Charts whose lines all have a single point are left out; those values are in the table of results.
        """
        found: dict[str, dict[str, Points]] = {}
        for tag, points in self.scalars.items():
            group, _, name = tag.rpartition("/")
            if tag.startswith("final/"):  # hparams
                continue
            if group == "train" and name.startswith("loss"):
                chart, line = "training loss", name.removeprefix("loss_")
            elif group == "heldout":
                chart, line = "held-out loss", name
            elif group == "train":
                chart, line = name.replace("_", " "), name
            elif group and name not in _NO_METRIC:
                chart, line = name, group
            else:
                continue
            found.setdefault(chart, {})[line] = points
        return {title: lines for title, lines in found.items() if any(len(points) > 1 for points in lines.values())}


def read_history(folder: str | Path) -> History:
    """Return the scalars in the event files of `folder`; empty if there are none.

    Values at step 0 are left out: they belong to evaluations of a finished run. Values that a killed run logged after
    its last checkpoint are replaced by those of the resumed run.
    """
    if not any(Path(folder).glob("events.out.tfevents.*")):
        return History({}, "steps", 0.0)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # takes seconds

    quiet = logging.getLogger("tensorboard")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        log = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 1, "tensors": 1})
        log.Reload()
    finally:
        quiet.setLevel(level)
    events = {tag: [e for e in log.Scalars(tag) if e.step > 0] for tag in log.Tags()["scalars"]}
    times = [event.wall_time for found in events.values() for event in found]
    seen = events.pop("images_seen", [])
    events.pop("epoch", None)
    factor = seen[-1].value / seen[-1].step if seen else 1.0
    scalars = {tag: sorted({e.step: e.value for e in found}.items()) for tag, found in events.items() if found}
    return History(
        {tag: [(step * factor, value) for step, value in points] for tag, points in scalars.items()},
        "images seen" if seen else "steps",
        max(times) - min(times) if times else 0.0,
    )
