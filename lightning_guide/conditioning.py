"""Conditions of a denoiser: class labels or text embeddings, and the encoding of "no condition".

* Labels are int64 (B,); -1 means no condition.
* Embeddings are floats (B, L, C): L tokens of C numbers each, stored outputs of a text encoder. A token of zeros is
  padding, as given by the mask of the encoder. A sample that has only padding has no condition.

The mask is part of the tensor: an embedding is indexed, moved and concatenated like labels, a linear map without bias
keeps its mask, and label dropout, classifier-free guidance and padding all use zeros.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_guide.denoiser import Denoiser
from lightning_guide.network import Network
from lightning_guide.utils.devices import to_device

__all__ = [
    "concatenate_conditions",
    "conditioned_rows",
    "mask_tokens",
    "pad_tokens",
    "pair_tokens",
    "token_mask",
    "check_labels",
    "condition_on",
    "LabelReader",
    "lowest_label",
    "condition_for",
    "drop_condition",
    "fill_empty",
]


def mask_tokens(tokens: Tensor, mask: Tensor) -> Tensor:
    """Return `tokens` (*, L, C) with zeros where `mask` (*, L) is 0 or False.

    Raises:
        ValueError: if shapes differ, the mask has values other than 0 and 1 (such as a mask that is added to logits),
            or an unmasked token is not finite or all zeros: all-zero tokens are reserved for padding.
    """
    if tokens.ndim < 2 or mask.shape != tokens.shape[:-1] or not tokens.is_floating_point():
        raise ValueError(
            f"an embedding has shape {tuple(tokens.shape)} and type {tokens.dtype}, its mask {tuple(mask.shape)}; "
            "expected floats (L, C) and a mask (L,)"
        )
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError("the mask of an embedding holds other numbers than 0 (padding) and 1 (a token)")
    counts = mask.bool()
    kept = tokens.masked_fill(~counts[..., None], 0)
    if not bool(kept.isfinite().all()):
        raise ValueError("an embedding holds numbers that are not finite in a token that counts")
    if bool((counts & ~token_mask(kept)).any()):
        raise ValueError("an embedding has a token of zeros that counts by its mask; zeros stand for no token")
    return kept


def token_mask(tokens: Tensor) -> Tensor:
    """Return the mask (*, L) of `tokens` (*, L, C): True where a token is not all zeros."""
    return (tokens != 0).any(dim=-1)


def pad_tokens(tokens: Tensor, length: int) -> Tensor:
    """Pad `tokens` (*, L, C) with tokens of zeros at the end to `length` tokens.

    Raises:
        ValueError: if L is more than `length`.
    """
    L = tokens.shape[-2]
    if L > length:
        raise ValueError(f"an embedding has {L} tokens; expected at most {length}")
    return F.pad(tokens, (0, 0, 0, length - L))


def pair_tokens(tokens: Tensor, other: Tensor) -> Tensor:
    """Return the tokens of both (B, L, C), each padded to the longer one, as `(B, 2 L, C)`."""
    length = max(tokens.shape[1], other.shape[1])
    return torch.cat([pad_tokens(tokens, length), pad_tokens(other, length)], dim=1)


def drop_condition(condition: Tensor, dropped: Tensor) -> Tensor:
    """Replace `condition`, labels (B,) or embeddings (B, L, C), by "no condition" where `dropped` (B,) is True.

    Examples:
        >>> drop_condition(torch.tensor([3, 1, 4]), torch.tensor([False, True, False]))
        tensor([ 3, -1,  4])
        >>> tokens = drop_condition(torch.ones(2, 3, 8), torch.tensor([True, False]))
        >>> token_mask(tokens).tolist()
        [[False, False, False], [True, True, True]]
    """
    if condition.is_floating_point():
        return condition.masked_fill(dropped[:, None, None], 0)
    return condition.masked_fill(dropped, -1)


def conditioned_rows(condition: Tensor) -> Tensor:
    """Return (B,) whether each sample has a condition: a label of 0 or more, or any token.

    Examples:
        >>> conditioned_rows(torch.tensor([3, -1])).tolist()
        [True, False]
    """
    return token_mask(condition).any(dim=1) if condition.is_floating_point() else condition >= 0


def fill_empty(tokens: Tensor | None, empty: Tensor, batch: int) -> Tensor:
    """Return `tokens` (B, L, C) with `empty` (L', C), the embedding of "no condition", in rows without any token.

    None means that all `batch` rows have none. The shorter of both is padded with zeros.

    Examples:
        >>> tokens = drop_condition(torch.ones(2, 1, 2), torch.tensor([True, False]))
        >>> fill_empty(tokens, torch.tensor([[3.0, 4.0]]), 2).tolist()
        [[[3.0, 4.0]], [[1.0, 1.0]]]
    """
    if tokens is None:
        return empty.expand(batch, *empty.shape)
    length = max(tokens.shape[1], len(empty))
    tokens = pad_tokens(tokens, length)
    return torch.where(conditioned_rows(tokens)[:, None, None], tokens, pad_tokens(empty.to(tokens), length))


def check_labels(condition: Tensor, num_classes: int, *, batch: int, lowest: int = -1) -> Tensor:
    """Return the labels `condition` (batch,), each from `lowest` to num_classes - 1.

    -1 means no condition; a network without a null class has the `lowest` label 0. On devices and inside compiled code
    the range is asserted on the device, without waiting for it; `condition_on` checks it on the host, with a sentence.

    Raises:
        ValueError: if `condition` is not integers of shape (batch,), or holds a label out of range.
    """
    if condition.shape != (batch,) or condition.is_floating_point() or condition.dtype == torch.bool:
        raise ValueError(
            f"class labels have shape {tuple(condition.shape)} and type {condition.dtype}; "
            f"expected integers of shape ({batch},), one label for each sample"
        )
    if condition.is_meta:
        return condition
    valid = (condition >= lowest) & (condition < num_classes)
    none = "or -1 for no condition" if lowest < 0 else "this network has no class for no condition"
    if torch.compiler.is_compiling() or condition.device.type not in ("cpu", "mps"):  # mps has no assertions
        torch._assert_async(valid.all(), f"class label outside {lowest} ... {num_classes - 1}, {none}")
    elif not valid.all():
        value = condition[~valid][0].item()
        raise ValueError(f"class label {value} is out of range; expected 0 to {num_classes - 1}, {none}")
    return condition


class LabelReader(ABC):
    """Base of modules that read the labels of samples besides the network, and say which they accept."""

    @abstractmethod
    def check_condition(self, labels: Tensor) -> None:
        """Check `labels` (B,) on the host, before the first step.

        Raises:
            ValueError: naming what is wrong with them.
        """


def condition_on(device: torch.device, condition: Tensor | None, denoiser: Denoiser) -> Tensor | None:
    """Return the `condition` (B,) or (B, L, C) of `denoiser` on `device`; labels on the host are checked there.

    Raises:
        ValueError: if a label is out of range, or there is none for a network without a class for no condition.
    """
    if condition is None:
        return None
    if not condition.is_floating_point() and condition.device.type == "cpu":
        if denoiser.num_classes:
            check_labels(condition, denoiser.num_classes, batch=len(condition), lowest=lowest_label(denoiser))
        for module in denoiser.modules():
            if isinstance(module, LabelReader):
                module.check_condition(condition)
    return to_device(condition, device)


def lowest_label(denoiser: Denoiser) -> int:
    """Return -1 if `denoiser` accepts this label, no condition, else 0."""
    networks = [module for module in denoiser.modules() if isinstance(module, Network)]
    return max((network.lowest_label for network in networks), default=-1)


def concatenate_conditions(conditions: Sequence[Tensor | None], batch: int, device: torch.device) -> Tensor | None:
    """Concatenate conditions of `batch` samples each; None gives "no condition" for its part, None alone None.

    Embeddings of different lengths are padded to the longest.
    """
    given = [condition for condition in conditions if condition is not None]
    if not given:
        return None
    if not any(condition.is_floating_point() for condition in given):
        none = torch.full((batch,), -1, device=device)
        return torch.cat([none if condition is None else condition for condition in conditions])
    length = max(tokens.shape[1] for tokens in given)
    nothing = given[0].new_zeros(batch, length, given[0].shape[2])
    return torch.cat([nothing if tokens is None else pad_tokens(tokens, length) for tokens in conditions])


def condition_for(condition: Tensor | None, denoiser: Denoiser) -> Tensor | None:
    """Return the condition that a guidance passes on to its `denoiser`: drop labels for unconditional denoisers.

    So a guide by labels can steer an unconditional model. Embeddings belong to the model and are always passed on.
    """
    labels = condition is not None and not condition.is_floating_point()
    return None if labels and not denoiser.num_classes else condition
