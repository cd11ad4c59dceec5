"""Networks compile into one graph, for sampling with fused weights and with the loss of a training step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_guide.inference import fuse_weights
from tests.devices import LOSSES, NETWORKS, condition_of, make_network

FAST = ("MDM", False), ("log density", True)
CASES = [(name, training) for name in NETWORKS for training in (False, True)]


@pytest.mark.parametrize(
    ("name", "training"), [case if case in FAST else pytest.param(*case, marks=pytest.mark.slow) for case in CASES]
)
def test_network_is_one_graph(name: str, training: bool) -> None:
    """Without breaks (`fullgraph`), with the numbers of the same calls that are not compiled."""
    model, sigma = make_network(name), torch.tensor([0.5, 1.0, 2.0])
    x, noise = torch.randn(2, 3, *model.data_shape, generator=torch.Generator().manual_seed(0))
    condition = condition_of(model)
    call: Any = fuse_weights(model)
    arguments: tuple[Any, ...] = (x, sigma, condition)
    if training:
        model.train().requires_grad_(True)
        loss = LOSSES[name]()
        call, arguments = loss.at, (model, x, condition, sigma, noise)
    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="eager")
    results = []
    for each in (compiled, call):
        torch.manual_seed(0)  # of dropout
        results.append(each(*arguments))
    torch.testing.assert_close(*(each.objective if training else each for each in results))
