"""Networks whose layers accelerate moves to the device one after another, from the CPU to the CPU here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import lightning_guide as lg
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.pretrained import DiffusersNetwork
from lightning_guide.seeds import SampleSeeds

accelerate = pytest.importorskip("accelerate", reason="needs the extra `pretrained`")
pytest.importorskip("diffusers", reason="needs the extra `pretrained`")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # inside diffusers
@pytest.mark.parametrize("name", ["sd", "sdxl", "dit", "ddpm"])
def test_an_offloaded_network_draws_the_same(name: str, tiny_pipeline: Callable[[str], Path]) -> None:
    model = lg.load(f"diffusers:{tiny_pipeline(name)}")
    assert isinstance(model, Preconditioned) and isinstance(model.network, DiffusersNetwork)
    generator = torch.Generator().manual_seed(0)
    condition = None
    if model.token_channels:
        condition = torch.randn(2, len(model.network.empty), model.token_channels, generator=generator)
    elif model.num_classes:
        condition = torch.tensor([3, -1])
    guidance = lg.ClassifierFreeGuidance(2.0, positive=model) if model.conditional else model

    def draw() -> torch.Tensor:
        return lg.Euler(3).sample(guidance, seeds=SampleSeeds(0, range(2)), condition=condition).x

    expected = draw()
    accelerate.cpu_offload(model.network.model, execution_device=torch.device("cpu"))
    assert all(weight.is_meta for weight in model.network.model.parameters())
    torch.testing.assert_close(draw(), expected)
    with pytest.raises(ValueError, match="has its forward replaced .by offloading hooks, for example"):
        lg.PerturbedAttentionGuidance(2.0, positive=model)(expected, torch.tensor(1.0), condition)
