"""Samples on the emulated device: the CPU's, no mixed devices, and no wait in any network, guidance or sampler."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_guide.commands.guidance_files import build_guidances, read_guidances
from lightning_guide.guidance import TDS, BestOfN, FeynmanKac
from lightning_guide.guidance.negatives import ClassifierFreeGuidance
from lightning_guide.noise_schedule import NoiseSchedule, TimestepGrid
from lightning_guide.objectives import Energy
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.pretrained.schedulers import scheduled_sampling
from lightning_guide.samplers import (
    DDIM,
    DEIS,
    PLMS,
    DPMSolver2M,
    Euler,
    Heun,
    ProportionalAncestral,
    Restart,
    Sampler,
    SDEDPMSolver2M,
    TimeTravel,
    UniPC,
)
from lightning_guide.seeds import SampleSeeds
from scripts.lib.emulated_device import DEVICE, EmulatedDevice
from tests.devices import EULER, GRID, NETWORKS, Models, condition_of, make_network, waits_of_samples
from tests.guidance_files import OF_TEXTS
from tests.test_pretrained_diffusers_network import condition, network

FILES = sorted((Path(__file__).parent.parent / "configs" / "guidance").glob("*.yaml"))
GUIDANCES = {name: made for file in FILES for name, made in read_guidances([str(file)]).items()}

WAITING = {"ag": len(GRID.sigmas()) - 2}
"""Methods that wait once in each step after the first: whether a network is called depends on the samples."""

PIPELINES = [
    name if name in ("dit", "flux") else pytest.param(name, marks=pytest.mark.slow)
    for name in ("ddpm", "sd", "sdxl", "if", "dit", "pixart", "sd3", "flux")
]


@functools.cache
def models(name: str) -> Models:
    return Models(make_network(name))


@pytest.mark.parametrize("name", NETWORKS)
def test_network_samples_without_waits(name: str) -> None:
    assert not waits_of_samples(models(name))


@pytest.mark.parametrize("name", GUIDANCES)
def test_guidance_samples_without_waits(name: str) -> None:
    def build(found: Models) -> Any:
        return build_guidances({name: GUIDANCES[name]})[name].resolve(found)

    waits = waits_of_samples(models("DiT of texts" if name in OF_TEXTS else "DiT"), build)
    assert len(waits) <= WAITING.get(name, 0), waits


@pytest.mark.slow
@pytest.mark.parametrize("name", GUIDANCES)
@pytest.mark.parametrize("network", [network for network in NETWORKS if network != "DiT"])
def test_guidance_samples_other_networks_without_waits(network: str, name: str) -> None:
    def build(found: Models) -> Any:
        return build_guidances({name: GUIDANCES[name]})[name].resolve(found)

    found = models(network)
    try:
        EULER.sample(build(found), seeds=SampleSeeds(0, range(3)), condition=condition_of(found.main))
    except ValueError as refused:
        pytest.skip(str(refused))
    assert len(waits_of_samples(found, build)) <= WAITING.get(name, 0)


@pytest.mark.parametrize("name", PIPELINES)
def test_published_network_samples_without_waits(tiny_pipeline: Callable[[str], Path], name: str) -> None:
    settings = json.loads((tiny_pipeline(name) / "scheduler" / "scheduler_config.json").read_text())
    found = network(tiny_pipeline, name)
    main = Preconditioned(found, scheduled_sampling(settings, 3, tokens=16).preconditioning, sigma_data=1.0)
    given = condition(found)
    assert not waits_of_samples(Models(main), given=given)


class Norm(Energy):
    """|x|^2 / 2."""

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return x.square().flatten(1).sum(1) / 2


SAMPLERS: dict[str, Callable[[], Sampler]] = {
    "Heun": lambda: Heun(GRID),
    "churn": lambda: Heun(GRID, s_churn=1.0),
    "DDIM": lambda: DDIM(GRID),
    "DEIS": lambda: DEIS(GRID),
    "FreeDoM": lambda: ProportionalAncestral(GRID),
    "DPM-Solver": lambda: DPMSolver2M(GRID),
    "PLMS": lambda: PLMS(GRID),
    "SDE-DPM-Solver": lambda: SDEDPMSolver2M(GRID),
    "UniPC": lambda: UniPC(GRID, order=3),
    "restart": lambda: Restart(Euler(GRID), low=0.5, high=1.0),
    "best of N": lambda: BestOfN(DDIM(GRID), Norm(), particles=2),
    "Feynman-Kac": lambda: FeynmanKac(DDIM(GRID), Norm(), particles=2),
    "TDS": lambda: TDS(Norm(), GRID, particles=2),
    "time travel": lambda: TimeTravel(Euler(GRID), 2),
    "timesteps": lambda: Euler(TimestepGrid(NoiseSchedule(), 2)),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampler_samples_without_waits(name: str) -> None:
    assert not waits_of_samples(
        models("DiT"), lambda found: ClassifierFreeGuidance(2.0).resolve(found), SAMPLERS[name]()
    )


def test_labels_out_of_range_are_refused_on_the_host_before_the_first_step() -> None:
    with EmulatedDevice() as device:
        model = models("DiT").to(DEVICE).main
        device.forget()
        for labels in ([0, 4, 1], [0, -2, 1]):
            with pytest.raises(ValueError, match=rf"class label {labels[1]} is out of range; expected 0 to 3"):
                Euler(GRID).sample(model, seeds=SampleSeeds(0, range(3)), condition=torch.tensor(labels), device=DEVICE)
        assert device.kernels == 2  # the noise is scaled, no network is called
        with pytest.raises(RuntimeError, match="class label outside -1 ... 3"):  # by the device, without waiting
            model(torch.zeros(1, 1, 8, 8, device=DEVICE), torch.tensor(1.0), torch.full((1,), 4, device=DEVICE))
        assert not device.waits
