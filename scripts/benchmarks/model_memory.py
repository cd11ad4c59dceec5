"""Memory that published models need while sampling, counted from the shapes of their tensors on the meta device.

    python -m scripts.benchmarks.model_memory

Weights have 16 bits. "One call" is the most that the tensors of one network call for one sample take beside the
weights, with attention in one fused kernel and without workspaces of kernels. Nothing was measured on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_guide.pretrained import DiffusersNetwork
from scripts.lib.command_line import run_script
from scripts.lib.published_models import PUBLISHED, autoencoder, text_encoder

__all__ = ["LiveMemory", "call_bytes", "decode_bytes", "main"]

GB = 1e9


class LiveMemory(TorchDispatchMode):
    """Bytes of the tensors that exist at once; `peak` is the most since the start. For tensors on the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[StorageWeakRef, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {StorageWeakRef(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)
                if reference not in given:
                    self.alive[reference] = storage.nbytes()
        self.alive = {reference: size for reference, size in self.alive.items() if not reference.expired()}
        self.peak = max(self.peak, sum(self.alive.values()))
        return result


class _FusedAttention(TorchFunctionMode):
    """Attention whose map never exists, as in kernels of GPUs."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            query, _, value = (
                args[:3] if len(args) > 2 else [(kwargs or {})[name] for name in ("query", "key", "value")]
            )
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def call_bytes(network: DiffusersNetwork, *, batch: int = 1, dtype: torch.dtype = torch.bfloat16) -> int:
    """Return the most bytes beside the weights in one call of a `network` on the meta device."""
    network = network.to(device="meta", dtype=dtype).eval()
    condition = None
    if network.token_channels:
        condition = torch.empty(batch, len(network.empty), network.token_channels, device="meta")
    elif network.num_classes:
        condition = torch.zeros(batch, dtype=torch.long, device="meta")
    x, t = torch.empty(batch, *network.data_shape, device="meta"), torch.empty(batch, device="meta")
    with _FusedAttention(), LiveMemory() as memory:
        network(x, t, network.embed(condition, batch))
    return memory.peak


@torch.no_grad()
def decode_bytes(side: int, *, tile: int | None = None, dtype: torch.dtype = torch.float32) -> int:
    """Return the most bytes beside the weights while Stable Diffusion's autoencoder decodes latents (1, 4, side, side).

    `tile`: side of tiles of latents, as of `DiffusersVAE`.
    """
    model, z = autoencoder(4).to(dtype).eval(), torch.empty(1, 4, side, side, device="meta", dtype=dtype)
    if tile is not None:
        model.tile_latent_min_size, model.tile_sample_min_size = tile, 8 * tile
    with _FusedAttention(), LiveMemory() as memory:
        model.decode(z) if tile is None else model.tiled_decode(z)
    return memory.peak


def _bytes(module: nn.Module) -> float:
    return 2.0 * sum(weight.numel() for weight in module.parameters())


def main() -> None:
    """Print the table, in gigabytes (10^9 bytes)."""
    print("| model | parameters | network | text encoders | autoencoder | one call |")
    print("|---|---|---|---|---|---|")
    for name, published in PUBLISHED.items():
        network = published.build()
        texts = sum(_bytes(text_encoder(each)) for each in published.texts)
        codec = _bytes(autoencoder(network.data_shape[0])) if published.latent else 0.0
        sizes = [_bytes(network), texts, codec, call_bytes(network)]
        row = [f"{size / GB:.3g}" if size else "" for size in sizes]
        print("|", " | ".join([name, f"{published.parameters / 1e6:,.0f} M", *row]), "|")
    for side, tile in ((64, None), (128, None), (128, 64)):
        tiles = "" if tile is None else f" in tiles of {tile} x {tile}"
        print(f"Decoding {side} x {side} latents{tiles}, 32 bits: {decode_bytes(side, tile=tile) / GB:.3g}")


if __name__ == "__main__":
    run_script(main)
