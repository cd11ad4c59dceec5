"""Attention of diffusers' networks as replaceable cores, and their blocks of two streams.

`add_cores` gives every self-attention and joint attention a submodule ``core`` without parameters, and a processor
around its own. While the core is plain attention, the own processor runs as it is. With another core, as in a perturbed
tree, it runs under a mode that sends its one call of `scaled_dot_product_attention` to the core; the mode acts within
that call alone. Norms, rotations, projections of texts and layouts stay those of the library.

| attention | queries | keys | core |
|---|---|---|---|
| self | image | image | image |
| joint, Stable Diffusion 3 | image, texts | image, texts | queries of the image; keys of the image first |
| joint, Flux | texts, image | texts, image | the same |
| joint, added keys of DeepFloyd IF | image | texts, image | the same |
| cross | image | texts | none: there is nothing between tokens of the image to perturb |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lightning_guide.networks.attention import CosineAttention

__all__ = ["TokenGrid", "add_cores", "check_core", "projections"]

_TEXTS_FIRST = {"JointAttnProcessor2_0": False, "FluxAttnProcessor": True, "AttnAddedKVProcessor2_0": True}
_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
_TWO_STREAMS = ("JointTransformerBlock", "FluxTransformerBlock", "FluxSingleTransformerBlock")


class TokenGrid:
    """Height and width of the input of a network, and with them those of its tokens; shared by all its attentions."""

    def __init__(self, patch: int) -> None:
        """`patch`: side of the patches of a transformer; 0 for a U-Net, which halves the sides several times."""
        self.patch = patch
        self.sides: Sequence[int] | None = None

    def size(self, tokens: int) -> tuple[int, int] | None:
        """Return (height, width) of the image in attention over `tokens` tokens, which may include texts."""
        if self.sides is None:
            return None
        height, width = self.sides
        if self.patch:
            return height // self.patch, width // self.patch
        while height * width > tokens:
            height, width = -(-height // 2), -(-width // 2)
        return (height, width) if height * width == tokens else None


class _CoredProcessor:
    """The `processor` of an attention module, whose core takes the place of plain attention."""

    def __init__(self, processor: Any, grid: TokenGrid) -> None:
        self.processor, self.grid = processor, grid
        vars(self)["__call__"] = processor.__call__  # whose signature the library reads

    def __call__(self, attn: Any, *arguments: Any, **named: Any) -> Any:
        if type(attn.core) is CosineAttention:
            return self.processor(attn, *arguments, **named)
        mode = _CoreMode(attn.core, type(self.processor).__name__, self.grid)
        with mode:
            result = self.processor(attn, *arguments, **named)
        if mode.calls != 1:
            raise ValueError(
                f"{mode.name} calls scaled_dot_product_attention {mode.calls} times, so that its attention cannot be "
                "perturbed; expected once, as of AttnProcessor2_0"
            )
        return result


class _CoreMode(TorchFunctionMode):
    """Send `scaled_dot_product_attention` to a core."""

    def __init__(self, core: nn.Module, name: str, grid: TokenGrid) -> None:
        super().__init__()
        self.core, self.name, self.grid, self.calls = core, name, grid, 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self.calls += 1
        return self.attend(*args, **(kwargs or {}))

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any
    ) -> Tensor:
        """Return the result (B, heads, rows, d): that of the core in rows of the image, plain attention in others."""
        if attn_mask is not None or options.get("is_causal"):
            raise ValueError(f"{self.name} masks its self-attention, which a perturbation of attention would ignore")
        if options.get("scale") not in (None, query.shape[-1] ** -0.5):
            raise ValueError(f"{self.name} scales queries by {options['scale']}; expected 1 / sqrt({query.shape[-1]})")
        rows, total = query.shape[-2], key.shape[-2]
        size = self.grid.size(rows)
        N = rows if size is None else size[0] * size[1]
        if N == total:
            result: Tensor = self.core(query, key, value, size)
            return result
        if self.name not in _TEXTS_FIRST:
            raise ValueError(f"{self.name} attends from {rows} to {total} tokens in an order that is not known")
        shift = total - N if _TEXTS_FIRST[self.name] else 0
        key, value = key.roll(-shift, -2), value.roll(-shift, -2)
        if rows == N:
            return self.core(query, key, value, size)
        query = query.roll(-shift, -2)
        image = self.core(query[..., :N, :], key, value, size)
        texts = F.scaled_dot_product_attention(query[..., N:, :], key, value)
        return torch.cat([image, texts], -2).roll(shift, -2)


def add_cores(model: nn.Module, *, patch: int) -> TokenGrid:
    """Give the attentions of `model` cores, and return the grid, whose `sides` are to be set before each call.

    Names of weights, and results, are as before. Blocks of two streams get the attribute `streams` (`BlockWrapper`).
    `patch`: side of the patches of a transformer, 0 for a U-Net.
    """
    grid = TokenGrid(patch)
    for module in model.modules():
        if type(module).__name__ in _TWO_STREAMS:
            module.streams = ("encoder_hidden_states", "hidden_states")  # type: ignore[assignment]
        if hasattr(module, "processor") and not _is_cross(module):
            if isinstance(module.processor, _CoredProcessor):  # another network has the same model
                grid = module.processor.grid
                continue
            module.core = CosineAttention()
            module.processor = _CoredProcessor(module.processor, grid)  # type: ignore[assignment]
    return grid


def check_core(network: nn.Module, name: str) -> None:
    """Refuse the core `name` of an attention whose processor was exchanged after `add_cores`: it is not called.

    Raises:
        ValueError: naming the attention.
    """
    attention = network.get_submodule(name.rpartition(".")[0])
    processor = getattr(attention, "processor", None)
    if processor is not None and not isinstance(processor, _CoredProcessor):
        raise ValueError(
            f"the attention {name.rpartition('.')[0]} got another processor, {type(processor).__name__}, which does "
            "not call its core, so that a perturbation would change nothing; expected set_attn_processor before the "
            "model becomes a network, or network.set_model(network.model) after it"
        )


def _is_cross(module: Any) -> bool:
    """Whether keys come from texts alone; keys that are added to those of the image make attention joint."""
    if getattr(module, "added_kv_proj_dim", None) is not None:
        return bool(getattr(module, "only_cross_attention", False))
    return bool(getattr(module, "is_cross_attention", False))


def projections(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return the linear layers of attention, which low-rank additions are usually made to, as a part of a network."""
    ends = tuple(f".{end}" for end in _PROJECTIONS)
    layers = ((name, layer) for name, layer in model.named_modules() if name.endswith(ends))
    names = [name for name, layer in layers if isinstance(layer, nn.Linear)]
    return {"projection": tuple(f"model.{name}" for name in names)} if names else {}
