"""What fine-tuning of published models trains, stores and holds in memory, counted from the shapes of their weights.

    python -m scripts.benchmarks.fine_tuning_memory

Whole: weights, gradients and Adam's two moments in 32 bits, 16 bytes a parameter, and 4 for each average. Low-rank: the
model in 16 bits, and 16 + 4 bytes for each number of the additions.

Activations: what a forward pass of one image in 16 bits keeps for the gradient of all weights, with attention that
keeps queries, keys, values and result alone. With `recompute` the inputs of blocks are kept, and the inside of one
block at a time, which is not counted, is added in the backward pass.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_guide.optimization import LowRank
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.pretrained import DiffusersNetwork
from scripts.lib.command_line import run_script
from scripts.lib.published_models import PUBLISHED

__all__ = ["activations", "count", "main"]

SHOWN = ("Stable Diffusion 1.5", "SDXL", "DiT-XL/2 256", "PixArt-alpha 512", "Stable Diffusion 3 medium", "FLUX.1 dev")


def count(network: DiffusersNetwork, rank: int) -> tuple[int, int, int]:
    """Return the parameters of a `network` on the meta device, those of additions of `rank`, and the adapted layers."""
    whole = sum(parameter.numel() for parameter in network.parameters())
    model = LowRank(Preconditioned(network, sigma_data=1.0), rank=rank)
    added = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    return whole, sum(added), len(model.adapted)


class _FusedAttention(torch.autograd.Function):
    """Attention that keeps what fused kernels keep, as far as its size goes."""

    @staticmethod
    def forward(context: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return a result `(B, heads, N, d)`."""
        result = torch.empty_like(q)
        context.save_for_backward(q, k, v, result)
        return result


def activations(network: DiffusersNetwork, *, recompute: bool) -> int:
    """Return the bytes that one image leaves for the gradients of a `network` on the meta device, in 16 bits."""
    network = network.to(torch.bfloat16)
    network.recompute = recompute
    kept: dict[int, Tensor] = {}  # by storage, which views have in common

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    def attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        result: Tensor = _FusedAttention.apply(query, key, value)
        return result

    with torch.device("meta"):
        x, level = torch.empty(1, *network.data_shape, dtype=torch.bfloat16), torch.ones(1)
        condition: Tensor | None = torch.zeros(1, dtype=torch.int64) if network.num_classes else None
        if network.token_channels:
            condition = torch.empty(1, len(network.empty), network.token_channels, dtype=torch.bfloat16)
    patch = mock.patch.object(functional, "scaled_dot_product_attention", attention)
    with patch, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(x, level, condition)
    weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    return sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in weights)


def main(rank: int = 8) -> None:
    """Print the table for additions of `rank`."""
    columns = (
        "trained, M",
        "snapshot, MB",
        "memory, low-rank, GB",
        "memory, whole, GB",
        "activations, GB",
        "recomputed",
    )
    print(f"| model | layers | {' | '.join(columns)} |")
    print("|---|" + "--:|" * (len(columns) + 1))
    for name in SHOWN:
        whole, added, layers = count(PUBLISHED[name].build(), rank)
        sizes = [added / 1e6, 4 * added / 1e6, (2 * whole + 20 * added) / 1e9, 20 * whole / 1e9]
        sizes += [activations(PUBLISHED[name].build(), recompute=recompute) / 1e9 for recompute in (False, True)]
        print(f"| {name} | {layers} | " + " | ".join(f"{size:.3g}" for size in sizes) + " |")


if __name__ == "__main__":
    run_script(main)
