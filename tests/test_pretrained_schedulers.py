"""Settings of schedulers give the samplers that agree with them on the same network and noise."""

from __future__ import annotations

import inspect
import math
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_guide.denoiser import Denoiser
from lightning_guide.guidance import Clipped
from lightning_guide.network import Network
from lightning_guide.noise import CustomGrid
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.pretrained.schedulers import ScheduledSampling, flow_shift, scheduled_sampling
from lightning_guide.samplers import DDIM, DEIS
from lightning_guide.samplers.brownian import BrownianPath
from lightning_guide.seeds import SampleSeeds

diffusers = pytest.importorskip("diffusers", reason="compares with the schedulers of diffusers, which is missing")

STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
BATCH = 5


class TinyNetwork(Network):
    """Two convolutions with a smooth dependence on the timestep."""

    data_shape = (3, 4, 4)
    num_classes = 0

    def __init__(self, scale: float = 1000.0, *, variances: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
            if variances:
                self.last = nn.Conv2d(8, 6, 3, padding=1)
        self.scale, self.variances = scale, variances

    def embed(self, condition: Tensor | None, batch: int) -> None:
        return None

    def forward(self, x: Tensor, c_noise: Tensor, embedding: Tensor | None) -> Tensor:
        time = (2 * c_noise.float() / self.scale)[:, None, None, None]
        return self.last(torch.tanh(self.first(x.float()) + time))


def noise() -> Tensor:
    return torch.randn(BATCH, 3, 4, 4, generator=torch.Generator().manual_seed(3))


def scheduler(name: str, **settings: Any) -> Any:
    return getattr(diffusers, name)(**settings)


@torch.no_grad()
def theirs(scheduler: Any, network: Network, num_steps: int, **options: Any) -> Tensor:
    """Final x of the other library's loop."""
    scheduler.set_timesteps(num_steps)
    x = noise() * getattr(scheduler, "init_noise_sigma", 1.0)
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(network(scaled, t.expand(BATCH), None), t, x, **options).prev_sample
    return x


def reading(scheduler: Any, num_steps: int, **options: Any) -> ScheduledSampling:
    settings = dict(scheduler.config) | {"_class_name": type(scheduler).__name__}
    return scheduled_sampling(settings, num_steps, **options)


def ours(found: ScheduledSampling, network: Network, start: float | None) -> Tensor:
    """Final x of our sampler, from the noise times `start`, or times sqrt(1 + sigma_0^2), the form without scale."""
    denoiser: Denoiser = Preconditioned(network, found.preconditioning)
    if (clipping := found.clipping) is not None:
        denoiser = Clipped(**asdict(clipping), positive=denoiser)
    factor = math.sqrt(1 + float(found.sampler.levels(denoiser)[0]) ** 2) if start is None else start
    *_, end = found.sampler.steps(denoiser, factor * noise(), seeds=SampleSeeds(0, range(BATCH)))
    return end.x


def error(one: Tensor, other: Tensor) -> float:
    """Largest difference relative to the largest number."""
    return float((one - other).abs().max() / other.abs().max())


CASES = [
    ("EulerDiscreteScheduler", {}, 1e-5),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, 1e-5),
    ("EulerDiscreteScheduler", {"use_exponential_sigmas": True}, 1e-5),
    # the other library computes sigma = 4096 from float32 numbers near 1
    ("EulerDiscreteScheduler", {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}, 5e-5),
    ("HeunDiscreteScheduler", {}, 1e-5),
    ("HeunDiscreteScheduler", {"use_karras_sigmas": True}, 1e-5),
    ("DDIMScheduler", {"clip_sample": False}, 1e-5),
    ("DDIMScheduler", {"clip_sample": True}, 1e-5),
    ("DDIMScheduler", {"thresholding": True, "clip_sample": False}, 1e-5),
    ("DDIMScheduler", {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.5}, 1e-5),
    ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": True, "prediction_type": "epsilon"}, 1e-5),
    ("DPMSolverMultistepScheduler", {}, 1e-5),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, 1e-5),
    ("UniPCMultistepScheduler", {}, 1e-5),
    ("UniPCMultistepScheduler", {"solver_order": 3}, 1e-5),
    ("UniPCMultistepScheduler", {"solver_order": 1, "use_karras_sigmas": True}, 1e-5),
]


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(("name", "settings", "tolerance"), CASES)
def test_discrete_schedulers(
    name: str, settings: dict[str, Any], tolerance: float, prediction: str, spacing: str
) -> None:
    if settings.get("prediction_type", prediction) != prediction:
        return
    if spacing == "linspace" and name in ("DDIMScheduler", "PNDMScheduler"):
        return  # their steps do not end where the next one begins
    offset = int(spacing == "leading")
    theirs_ = scheduler(
        name,
        **STABLE_DIFFUSION,
        timestep_spacing=spacing,
        steps_offset=offset,
        **({"prediction_type": prediction} | settings),
    )
    network = TinyNetwork()
    expected, start = theirs(theirs_, network, 8), float(theirs_.init_noise_sigma)
    sampled = ours(reading(theirs_, 8), network, None if start == 1.0 else start)
    assert error(sampled, expected) < tolerance


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2", "array"])
def test_other_noise_schedules(schedule: str) -> None:
    betas = [0.0002 + 0.00001 * i for i in range(1000)] if schedule == "array" else None
    kind = "linear" if betas else schedule
    theirs_ = scheduler("EulerDiscreteScheduler", beta_schedule=kind, trained_betas=betas, timestep_spacing="leading")
    network = TinyNetwork()
    expected = theirs(theirs_, network, 12)
    # float32 products of (1 - beta) are off by up to 3e-4 at the last cosine timesteps
    assert error(ours(reading(theirs_, 12), network, float(theirs_.init_noise_sigma)), expected) < 5e-4


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("num_steps", [1, 4, 28])
def test_flow_with_a_fixed_shift(shift: float, num_steps: int) -> None:
    theirs_ = scheduler("FlowMatchEulerDiscreteScheduler", shift=shift)
    network, found = TinyNetwork(), reading(theirs_, num_steps)
    sampled = ours(found, network, 1 + float(found.sampler.levels(Preconditioned(network, found.preconditioning))[0]))
    assert error(sampled, theirs(theirs_, network, num_steps)) < 1e-5


@pytest.mark.parametrize("tokens", [256, 1024, 4096])
def test_flow_with_a_shift_by_resolution(tokens: int) -> None:
    theirs_ = scheduler("FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True)
    network, found = TinyNetwork(), reading(theirs_, 8, tokens=tokens)
    theirs_.set_timesteps(sigmas=[1 - i / 8 for i in range(8)], mu=math.log(flow_shift(tokens)))
    x = noise()
    with torch.no_grad():
        for t in theirs_.timesteps:
            x = theirs_.step(network(x, t.expand(BATCH), None), t, x).prev_sample
    assert error(ours(found, network, 1e6 + 1), x) < 1e-5


@pytest.mark.parametrize("spread", ["karras", "exponential"])
@pytest.mark.parametrize("name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
def test_edm_schedulers(name: str, spread: str) -> None:
    theirs_ = scheduler(name, sigma_schedule=spread)
    network, found = TinyNetwork(scale=1.0), reading(theirs_, 8)
    assert error(ours(found, network, float(theirs_.init_noise_sigma)), theirs(theirs_, network, 8)) < 1e-5


class Stream:
    """Fresh noise of our streams, in place of the other library's generator."""

    def __init__(self, name: str) -> None:
        self.name, self.seeds = name, SampleSeeds(0, range(BATCH))

    def __call__(self, shape: Any, **_: Any) -> Tensor:
        return self.seeds.normal(self.name, tuple(shape[1:]), "cpu")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("EulerAncestralDiscreteScheduler", {}),
        ("DDPMScheduler", {"clip_sample": False}),
        ("DDPMScheduler", {"clip_sample": True}),
        ("DDPMScheduler", {"clip_sample": True, "variance_type": "learned_range"}),
        ("DDIMScheduler", {"clip_sample": False}),
        ("DDIMScheduler", {"clip_sample": True}),
        ("CMStochasticIterativeScheduler", {}),
    ],
)
def test_schedulers_that_add_noise(name: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    consistency = name == "CMStochasticIterativeScheduler"
    theirs_ = scheduler(
        name, **settings, **({} if consistency else {**STABLE_DIFFUSION, "timestep_spacing": "leading"})
    )
    monkeypatch.setattr(inspect.getmodule(type(theirs_)), "randn_tensor", Stream("ancestral"))
    learned = settings.get("variance_type") == "learned_range"
    network = TinyNetwork(250 * math.log(80) if consistency else 1000.0, variances=learned)
    expected = theirs(theirs_, network, 8, **({"eta": 1.0} if name == "DDIMScheduler" else {}))
    found = reading(theirs_, 8)
    if name == "DDIMScheduler":
        sampler = DDIM(found.sampler.grid, eta=1.0)
        found = ScheduledSampling(found.preconditioning, sampler, found.clipping)
    start = float(theirs_.init_noise_sigma)
    # the fresh noise of consistency models is sqrt(sigma'^2 - sigma_min^2) there, 0.6 % less at the last level but one
    tolerance = 1e-3 if consistency else 2e-5
    assert error(ours(found, network, None if start == 1.0 else start), expected) < tolerance


def test_the_stochastic_dpm_solver_with_increments_of_our_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {**STABLE_DIFFUSION, "algorithm_type": "sde-dpmsolver++"}
    theirs_ = scheduler("DPMSolverMultistepScheduler", **settings)
    found, network = reading(theirs_, 8), TinyNetwork()
    levels = found.sampler.levels(Preconditioned(network, found.preconditioning)).tolist()
    path, taken = BrownianPath(SampleSeeds(0, range(BATCH)), (3, 4, 4)), iter(pairwise(levels))

    def fresh(shape: Any, **_: Any) -> Tensor:
        high, low = next(taken)
        if low == 0:
            return torch.zeros(tuple(shape))
        increment = path.inside(low) - path.inside(high) + path.octaves(high, low)
        return increment / math.sqrt(low**-2 - high**-2)

    monkeypatch.setattr(inspect.getmodule(type(theirs_)), "randn_tensor", fresh)
    assert error(ours(found, network, None), theirs(theirs_, network, 8)) < 1e-5


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # numpy on tensors, in diffusers
@pytest.mark.parametrize("settings", [{}, {"solver_order": 3}, {"solver_order": 1}])
def test_deis_up_to_the_level_of_timestep_zero(settings: dict[str, Any]) -> None:
    theirs_ = scheduler("DEISMultistepScheduler", **STABLE_DIFFUSION, lower_order_final=False, **settings)
    network = TinyNetwork()
    expected = theirs(theirs_, network, 8)
    end = float(theirs_.sigmas[-1])  # our grids go on from there, here by two steps more
    theirs_.register_to_config(lower_order_final=True)
    found = reading(theirs_, 8)
    denoiser = Preconditioned(network, found.preconditioning)
    levels = [*found.sampler.levels(denoiser).tolist()[:-1], end, end / 2]
    sampler = DEIS(CustomGrid(levels), order=settings.get("solver_order", 2))
    assert isinstance(found.sampler, DEIS) and found.sampler.order == sampler.order
    start = math.sqrt(1 + levels[0] ** 2) * noise()
    states = sampler.steps(denoiser, start, seeds=SampleSeeds(0, range(BATCH)))
    state = next(each.x for each in states if each.sigma_next == pytest.approx(end))
    assert error(state / math.sqrt(1 + end**2), expected) < 1e-5


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("LCMScheduler", {}, "the scheduler LCMScheduler is not supported; supported: EulerDisc"),
        ("DEISMultistepScheduler", {"solver_type": "midpoint"}, "solver_type='midpoint' is not supported"),
        ("UniPCMultistepScheduler", {"solver_type": "bh1"}, "solver_type='bh1' is not supported; expected 'bh2'"),
        ("UniPCMultistepScheduler", {"disable_corrector": [0]}, r"disable_corrector=\[0\] is not supported"),
        ("PNDMScheduler", {"skip_prk_steps": False}, "PNDMScheduler with skip_prk_steps=False is not supported"),
        ("PNDMScheduler", {"prediction_type": "v_prediction"}, "prediction_type='v_prediction' is not supported"),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "deis"}, "algorithm_type='deis' is not"),
        ("DPMSolverMultistepScheduler", {"solver_order": 3}, "solver_order=3 is not supported; expected 2"),
        ("EulerDiscreteScheduler", {"use_beta_sigmas": True}, "use_beta_sigmas=True is not supported"),
        ("DDPMScheduler", {"variance_type": "fixed_large"}, "variance_type='fixed_large' is not supported"),
        ("DDIMScheduler", {"beta_schedule": "sigmoid"}, "beta_schedule='sigmoid' is not supported"),
        ("DDIMScheduler", {"prediction_type": "flow"}, "prediction_type='flow' is not supported"),
        ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, "needs the number of tokens"),
        ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}, "stochastic_sampling=True is not supported"),
    ],
)
def test_other_classes_and_settings_are_refused_by_name(name: str, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        scheduled_sampling({"_class_name": name, **settings}, 8)
