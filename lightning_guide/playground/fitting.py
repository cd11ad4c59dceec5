"""Guidances that fit the model of a run, with earlier snapshots that it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from lightning_guide.commands.guidance_files import build_guidances
from lightning_guide.denoiser import Trajectory
from lightning_guide.playground.methods import Method
from lightning_guide.runs.models import RunModels
from lightning_guide.seeds import SampleSeeds
from lightning_guide.snapshots import SnapshotMissing

__all__ = ["Stored", "fitting_methods"]


Stored = Mapping[str, tuple[int | None, float | str | None]]
"""Name -> (images, average) of the models of a run."""


def fitting_methods(
    methods: Mapping[str, Method], models: RunModels, stored: Stored
) -> tuple[dict[str, Method], dict[str, str]]:
    """Return the methods that fit the main one of `models`, and of each other one the reason."""
    fitting: dict[str, Method] = {}
    refused: dict[str, str] = {}
    for name, method in methods.items():
        try:
            fitting[name] = _with_stored_guider(method, models, stored)
        except ValueError as error:
            refused[name] = str(error)
    return fitting, refused


def _with_stored_guider(method: Method, models: RunModels, stored: Stored) -> Method:
    """Return `method` if it fits; an earlier snapshot that the run does not have is replaced by its earliest one.

    Raises:
        ValueError: if it does not fit the model.
    """
    try:
        _resolve(method, models)
    except SnapshotMissing:
        places = [each.place.rpartition(".")[0] for each in method.parameters if each.place.endswith(".images")]
        earliest = min((each for each in stored.values() if each[0] is not None), default=None)
        if earliest is None:
            raise
        values = {
            f"{place}.{key}": each
            for place in places
            for key, each in zip(("images", "sigma_rel"), earliest, strict=True)
        }
        asked = {each.place: each.value for each in method.parameters if each.place in values}
        changed = "; ".join(f"{place} is {value}, not {asked[place]}" for place, value in values.items())
        note = f"The run has no such earlier snapshot as the guider here, so its earliest one is offered: {changed}."
        method = replace(method.with_values(values), note=note)
        _resolve(method, models)
    return method


@torch.no_grad()
def _resolve(method: Method, models: RunModels) -> None:
    """Build the method for the model and begin a trajectory, for which it looks for layers; no network is called."""
    (built,) = build_guidances({method.name: dict(method.written)}).values()
    x = torch.zeros(1, *models.main.data_shape, device=models.device)
    built.resolve(models).start(Trajectory(x=x, seeds=SampleSeeds(0, [0]), sigma=1.0))
