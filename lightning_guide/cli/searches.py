"""The commands sweep and tune."""

from __future__ import annotations

from pathlib import Path

from lightning_guide.commands.sweep import Sweep
from lightning_guide.commands.tune import Tune

__all__ = ["sweep", "tune"]


def sweep(run: str, search: str, *, out: str, configs: list[str] | None = None, devices: int | None = None) -> None:
    """Score every point of a grid over the same samples: tables, curves and maps. Resumes if interrupted.

    Args:
        run: folder of the finished run, or its config.
        search: file of the settings that vary, such as configs/search/autoguidance.yaml.
        out: folder of the results.
        configs: files laid over the run's config.
        devices: number of processes; default: as in the config.
    """
    Sweep(search, Path(out)).start(run, configs or [], devices)


def tune(
    run: str,
    search: str,
    *,
    budget: int,
    out: str,
    calls: int | None = None,
    configs: list[str] | None = None,
    devices: int | None = None,
) -> None:
    """Find a good point of a grid with few samples, and write it as a guidance to be used with -c. Resumes.

    Args:
        run: folder of the finished run, or its config.
        search: file of the settings that vary and of the objectives, such as configs/search/autoguidance.yaml.
        budget: how many images may be generated.
        out: folder of the results.
        calls: network calls per sample that a point may cost, the guider's counted; default: any number.
        configs: files laid over the run's config.
        devices: number of processes; default: as in the config.
    """
    Tune(search, Path(out), budget, calls).start(run, configs or [], devices)
