"""Every guidance gives the same samples whatever the network predicts, with the same denoiser inside."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser
from lightning_guide.noise import LogUniformGrid
from lightning_guide.noise_schedule import NoiseSchedule
from lightning_guide.preconditioning import (
    EDM,
    EpsilonPrediction,
    Preconditioned,
    Preconditioning,
    RectifiedFlow,
    SamplePrediction,
    VelocityPrediction,
)
from lightning_guide.samplers import Euler
from lightning_guide.seeds import SampleSeeds
from tests.guidance_files import OF_TEXTS, guidances_of
from tests.test_configs_guidance import FILES, Two
from tests.test_preconditioning import level

SCHEDULE = NoiseSchedule("scaled_linear", beta_start=0.00085, beta_end=0.012)
KINDS: dict[str, Preconditioning] = {
    "epsilon": EpsilonPrediction(SCHEDULE),
    "velocity": VelocityPrediction(SCHEDULE),
    "sample": SamplePrediction(SCHEDULE),
    "flow": RectifiedFlow(),
    "flow, reversed": RectifiedFlow(1.0, reverse=True),
}
LEVELS = LogUniformGrid(3, sigma_min=0.1, sigma_max=5.0)


def reexpressed(denoiser: Preconditioned, preconditioning: Preconditioning) -> Preconditioned:
    """The same denoiser, as a network of another kind with the same parts."""
    network: Any = copy.deepcopy(denoiser.network)
    inner, edm = type(network), EDM(denoiser.sigma_data)

    class Other(inner):  # type: ignore[misc, valid-type]
        def forward(self, x: Tensor, c_noise: Tensor, embedding: Tensor | None) -> Tensor:
            sigma = level(preconditioning, c_noise.double())
            shape = (-1, *[1] * (x.ndim - 1))
            outer = [each.reshape(shape) for each in preconditioning.coefficients(sigma)]
            own = edm.coefficients(sigma)
            skip, out, c_in, _ = (each.reshape(shape) for each in own)
            raw = x / outer[2]
            clean = skip * raw + out * super().forward(c_in * raw, own.noise, embedding)
            return (clean - outer[0] * raw) / outer[1]

    network.__class__ = Other
    return Preconditioned(network, preconditioning, sigma_data=denoiser.sigma_data).eval()


class Reexpressed:
    """The models of an evaluation, in another form."""

    prompts = None

    def __init__(self, models: Two, preconditioning: Preconditioning) -> None:
        self.main = reexpressed(models.main, preconditioning)
        self.other = reexpressed(models.other, preconditioning)

    def snapshot(self, **_: Any) -> Denoiser:
        return self.other


@pytest.fixture(scope="module", params=["unet", pytest.param("transformer", marks=pytest.mark.slow)])
def models(request: pytest.FixtureRequest) -> Two:
    two = Two(request.param)
    two.main.double(), two.other.double()
    return two


@pytest.fixture(scope="module")
def others(models: Two) -> dict[str, Reexpressed]:
    return {kind: Reexpressed(models, preconditioning) for kind, preconditioning in KINDS.items()}


def draw(guidance: Denoiser, models: Any) -> Tensor:
    x = 5 * torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    walk = Euler(LEVELS).steps(
        guidance.resolve(models), x, seeds=SampleSeeds(0, range(2)), condition=torch.tensor([3, 7])
    )
    *_, end = walk
    return end.x


FAST = ("flow, reversed",)


@pytest.mark.parametrize(
    "kinds", [FAST, pytest.param(tuple(kind for kind in KINDS if kind not in FAST), marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("file", [file for file in FILES if file.stem not in OF_TEXTS], ids=lambda file: file.stem)
def test_guidance_does_not_depend_on_what_the_network_predicts(
    file: Path, kinds: tuple[str, ...], models: Two, others: dict[str, Reexpressed]
) -> None:
    for name, guidance in guidances_of(file).items():
        expected = draw(guidance, models)
        for kind in kinds:
            found = draw(guidance, others[kind])
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6, msg=f"{name}, {kind}")
