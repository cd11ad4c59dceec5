"""Autocast to 16 bits on the emulated device: near the numbers of 32 bits, no mixed devices, no waits."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_guide.inference import fuse_weights
from lightning_guide.seeds import SampleSeeds
from scripts.lib.emulated_device import DEVICE, EmulatedDevice
from tests.devices import EULER, LOSSES, NETWORKS, condition_of, make_network

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
FAST = ("EDM2", "bf16"), ("MDM", "fp16")


@pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
def test_operations_have_the_types_of_cuda(dtype: torch.dtype) -> None:
    with EmulatedDevice():
        layer, x = nn.Linear(4, 4).to(DEVICE), torch.randn(3, 4, device=DEVICE)
        with torch.autocast("emu", dtype=dtype):
            y = layer(x)
            narrow = [y, y @ y.T, y + y, torch.einsum("ij,kj->ik", y, x), F.scaled_dot_product_attention(y, y, y)]
            wide = [y.exp(), y.softmax(-1), F.layer_norm(y, (4,)), y + x, torch.addcmul(x, y, y), y.sum(), y.norm()]
            (gradient,) = torch.autograd.grad(y.float().sum(), layer.weight)
        assert {each.dtype for each in narrow} == {dtype} and {each.dtype for each in wide} == {torch.float32}
        assert gradient.dtype == torch.float32 and layer(x).dtype == torch.float32
        assert (x.double() + y).dtype == torch.float64


def work(name: str, dtype: torch.dtype | None, device: EmulatedDevice) -> tuple[Tensor, Tensor]:
    """Gradients of a training step and samples, on the device without waits."""
    model = make_network(name).to(DEVICE)
    x = torch.randn(3, *model.data_shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    condition, loss = condition_of(model), LOSSES[name]().to(DEVICE)
    on_device = None if condition is None else condition.to(DEVICE)
    sampled = fuse_weights(model)
    context: Any = contextlib.nullcontext() if dtype is None else torch.autocast("emu", dtype=dtype)
    device.forget()
    with context:
        drawn = EULER.sample(sampled, seeds=SampleSeeds(0, range(3)), condition=condition, device=DEVICE).x
    model.requires_grad_(True)
    with context:
        terms = loss(model, x, on_device, torch.Generator(DEVICE).manual_seed(0))
    terms.objective.mean().backward()
    assert not device.waits and drawn.dtype == terms.objective.dtype == torch.float32
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return torch.cat(gradients).cpu(), drawn.cpu()


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, TYPES[kind], id=f"{name}-{kind}", marks=() if (name, kind) in FAST else pytest.mark.slow)
        for name in NETWORKS
        for kind in TYPES
    ],
)
def test_network_trains_and_samples_in_sixteen_bits(name: str, dtype: torch.dtype) -> None:
    with EmulatedDevice() as device:
        exact, rough = work(name, None, device), work(name, dtype, device)
    # gradients and samples; those of the log-density differ in their gradients alone
    limits = (0.3, 0.05) if dtype == torch.bfloat16 else (0.1, 0.01)
    errors = [float((one - other).norm() / one.norm()) for one, other in zip(exact, rough, strict=True)]
    assert 0 < errors[0] < limits[0] and errors[1] < limits[1]
