"""Kernels, bytes, operations and waits that the benchmark counts, and those of a guidance's own formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_guide.guidance import ClassifierFreeGuidance, Guided
from lightning_guide.networks import EDM2UNet
from lightning_guide.preconditioning import Preconditioned
from scripts.benchmarks.direct_edm2 import DirectEDM2
from scripts.benchmarks.edm2 import Baseline
from scripts.benchmarks.kernels import Meter, costs
from scripts.lib.emulated_device import DEVICE

SHAPE = (3, 8, 8)
SMALL: dict[str, Any] = {"model_channels": 8, "channel_mult": (1, 2), "num_blocks": 1}


def test_ours_takes_fewer_kernels_and_bytes_for_the_same_products() -> None:
    torch.manual_seed(0)
    ours = costs(*(Preconditioned(EDM2UNet(SHAPE, num_classes=4, attention_resolutions=(), **SMALL)) for _ in range(2)))
    nets = (DirectEDM2(3, 8, num_classes=4, attn_resolutions=(), **SMALL) for _ in range(2))
    direct = costs(*(Baseline(net, SHAPE) for net in nets))
    assert ours.keys() == direct.keys() and len(ours) == 5
    for name, cost in ours.items():
        assert cost.kernels < direct[name].kernels, name
        assert cost.bytes < direct[name].bytes, name
        assert cost.waits == 0, name
    forward = "its forward pass of the network"
    assert ours[forward].flops == pytest.approx(direct[forward].flops, rel=0.02)
    assert ours["training step"].flops > 2.5 * ours[forward].flops
    guided, call = ours["classifier-free guidance"], ours["network call of sampling, without guidance"]
    assert guided.flops == pytest.approx(2 * call.flops, rel=0.02)
    assert guided.kernels < 1.1 * call.kernels  # both labels are one batch


class Waiting(EDM2UNet):
    """Waits twice in each call."""

    def forward(self, x: torch.Tensor, c_noise: torch.Tensor, embedding: torch.Tensor | None) -> torch.Tensor:
        assert float(x.sum()) == float(x.sum())
        return super().forward(x, c_noise, embedding)


def test_waits_are_those_of_a_step_and_of_a_call() -> None:
    nets = [kind(SHAPE, num_classes=4, attention_resolutions=(), **SMALL) for kind in (Waiting, EDM2UNet)]
    found = costs(*map(Preconditioned, nets))
    assert [cost.waits for cost in found.values()] == [2] * 5


def test_meter_counts_bytes_and_operations_of_a_product() -> None:
    with Meter() as meter:
        a, b = torch.ones(4, 8, device=DEVICE), torch.ones(8, 2, device=DEVICE)
        cost = meter.cost(lambda: a @ b)
        assert (cost.kernels, cost.bytes, cost.flops, cost.waits) == (1, 4 * (32 + 16 + 8), 2 * 4 * 8 * 2, 0)
        wide = meter.cost(lambda: a.expand(3, 4, 8) + 1)
        assert (wide.kernels, wide.bytes, wide.flops) == (1, 4 * (32 + 96), 0)


def test_lists_of_tensors_share_kernels_if_their_shapes_agree() -> None:
    with Meter() as meter:
        many, large = [torch.ones(3, device=DEVICE) for _ in range(111)], [torch.ones(65536 * 321, device=DEVICE)]
        assert meter.cost(lambda: torch._foreach_add_(many, 1.0)).kernels == 2
        assert meter.cost(lambda: torch._foreach_mul_(many[:64], many[:64])).kernels == 1
        assert meter.cost(lambda: torch._foreach_mul_(many[:65], many[:65])).kernels == 2
        rows = [torch.ones(1, device=DEVICE) for _ in range(5)]
        assert meter.cost(lambda: torch._foreach_div_(many[:5], rows)).kernels == 5
        assert meter.cost(lambda: torch._foreach_add_(large, 1.0)).kernels == 2


class Table(Baseline):
    """A denoiser without a kernel."""

    def __init__(self) -> None:
        super().__init__(DirectEDM2(3, 8, num_classes=4, attn_resolutions=(), **SMALL), SHAPE)

    def forward(self, x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        """Return x."""
        return x.view_as(x)


@pytest.mark.parametrize(("negatives", "kernels"), [(1, 1), (2, 3), (3, 5)])
def test_plain_rule_is_one_kernel_and_two_for_each_further_negative(negatives: int, kernels: int) -> None:
    guided = Guided([Table() for _ in range(negatives)], [2.0] * negatives, positive=Table())
    with Meter() as meter, torch.no_grad():
        guided.to(DEVICE)
        x, sigma = torch.zeros(2, *SHAPE, device=DEVICE), torch.tensor(1.0, device=DEVICE)
        assert meter.cost(lambda: guided(x, sigma)).kernels - meter.cost(lambda: Table()(x, sigma)).kernels == kernels
    assert isinstance(ClassifierFreeGuidance(2.0, positive=Table()).combination, type(guided.combination))
