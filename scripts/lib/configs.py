"""Pieces of configs, and files of settings that a study writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml

Solver = Literal["Heun", "DPMSolver2M", "DEIS", "PLMS", "Euler"]


def class_config(class_path: str, **arguments: Any) -> dict[str, Any]:
    """Config of an object of a class."""
    return {"class_path": class_path, "init_args": arguments}


def solver(kind: Solver, num_steps: int) -> dict[str, Any]:
    """Config of a sampler with `num_steps` steps of EDM's grid."""
    grid = class_config("lightning_guide.noise.KarrasGrid", num_steps=num_steps)
    return class_config(f"lightning_guide.samplers.{kind}", grid=grid)


def write_settings(path: Path, settings: dict[str, Any], *, done: Path) -> None:
    """Write the config of a step that is not finished; check that of a finished one, marked by the file `done`.

    Raises:
        SystemExit: if the step is finished under other settings, so that results of different settings are not mixed.
    """
    text = yaml.safe_dump(settings, sort_keys=False)
    if not done.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    elif not path.exists() or path.read_text(encoding="utf-8") != text:
        raise SystemExit(
            f"{path.parent} was made with other settings than these ({path.name}); expected the same ones, or another "
            "--out"
        )
