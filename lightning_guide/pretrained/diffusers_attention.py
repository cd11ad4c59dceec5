"""Attention of diffusers' networks as replaceable cores, and their blocks of two streams.

`add_cores` gives every self-attention and joint attention a submodule ``core``, every cross-attention and joint
attention a submodule ``reader``, both without parameters, and each a processor around its own. While these are those of
plain attention, the own processor runs as it is. With others, as in a perturbed tree, it runs under a mode that sends
its one call of `scaled_dot_product_attention` to them; the mode acts within that call alone. Norms, rotations,
projections of texts and layouts stay those of the library.

| attention | queries | keys | core | reader |
|---|---|---|---|---|
| self | image | image | image | none |
| joint, Stable Diffusion 3 | image, texts | image, texts | queries of the image; its keys first | around the core |
| joint, Flux | texts, image | texts, image | the same | the same |
| joint, added keys of DeepFloyd IF | image | texts, image | the same | the same |
| cross | image | texts | none: nothing lies between tokens of the image | around the attention |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lightning_guide.networks.attention import Attend, CosineAttention, TextReader, plain_attention

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
    """The `processor` of an attention module, whose core and reader take the place of plain attention."""

    def __init__(self, processor: Any, grid: TokenGrid) -> None:
        self.processor, self.grid = processor, grid
        vars(self)["__call__"] = processor.__call__  # whose signature the library reads

    def __call__(self, attn: Any, *arguments: Any, **named: Any) -> Any:
        core, reader = getattr(attn, "core", None), getattr(attn, "reader", None)
        if type(core) in (CosineAttention, type(None)) and type(reader) in (TextReader, type(None)):
            return self.processor(attn, *arguments, **named)
        mode = _CoreMode(core, reader, type(self.processor).__name__, self.grid)
        with mode:
            result = self.processor(attn, *arguments, **named)
        if mode.calls != 1:
            raise ValueError(
                f"{mode.name} calls scaled_dot_product_attention {mode.calls} times, so that its attention cannot be "
                "perturbed; expected once, as of AttnProcessor2_0"
            )
        return result


class _CoreMode(TorchFunctionMode):
    """Send `scaled_dot_product_attention` to a core (none in cross-attention), by way of a reader if texts are read."""

    def __init__(self, core: Any, reader: Any, name: str, grid: TokenGrid) -> None:
        super().__init__()
        self.core, self.reader, self.name, self.grid, self.calls = core, reader, name, grid, 0

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
        cross = self.core is None
        if (attn_mask is not None and not cross) or options.get("is_causal"):
            raise ValueError(f"{self.name} masks its self-attention, which a perturbation of attention would ignore")
        if options.get("scale") not in (None, query.shape[-1] ** -0.5):
            raise ValueError(f"{self.name} scales queries by {options['scale']}; expected 1 / sqrt({query.shape[-1]})")
        if cross:
            read: Tensor = self.reader(plain_attention, query, key, value, attn_mask)
            return read
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
        if rows > N:
            query = query.roll(-shift, -2)
        attend: Attend = lambda q, k, v, mask: self.core(q, k, v, size)  # noqa: E731
        image: Tensor = self.reader(attend, query[..., :N, :], key, value, own=N)
        if rows == N:
            return image
        texts = self.reader.texts(query[..., N:, :], key, value, own=N)
        return torch.cat([image, texts], -2).roll(shift, -2)


def add_cores(model: nn.Module, *, patch: int) -> TokenGrid:
    """Give the attentions of `model` cores and readers; return the grid, whose `sides` are set before each call.

    Names of weights, and results, are as before. Blocks of two streams get the attribute `streams` (`BlockWrapper`).
    `patch`: side of the patches of a transformer, 0 for a U-Net.
    """
    grid = TokenGrid(patch)
    for module in model.modules():
        if type(module).__name__ in _TWO_STREAMS:
            module.streams = ("encoder_hidden_states", "hidden_states")  # type: ignore[assignment]
        if hasattr(module, "processor"):
            if isinstance(module.processor, _CoredProcessor):  # another network has the same model
                grid = module.processor.grid
                continue
            if not _is_cross(module):
                module.core = CosineAttention()
            if _reads_texts(module):
                module.reader = TextReader()
            module.processor = _CoredProcessor(module.processor, grid)  # type: ignore[assignment]
    return grid


def check_core(network: nn.Module, name: str) -> None:
    """Refuse the core or reader `name` of an attention whose processor was exchanged later: it is not called.

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


def _reads_texts(module: Any) -> bool:
    """Whether keys of texts are among the keys; the single blocks of Flux get them as tokens of one sequence."""
    added = getattr(module, "added_kv_proj_dim", None) is not None
    return added or _is_cross(module) or type(module.processor).__name__ == "FluxAttnProcessor"


def projections(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return the linear layers of attention, which low-rank additions are usually made to, as a part of a network."""
    ends = tuple(f".{end}" for end in _PROJECTIONS)
    layers = ((name, layer) for name, layer in model.named_modules() if name.endswith(ends))
    names = [name for name, layer in layers if isinstance(layer, nn.Linear)]
    return {"projection": tuple(f"model.{name}" for name in names)} if names else {}
