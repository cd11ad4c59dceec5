"""Conditions of a denoiser: class labels or text embeddings, and the encoding of "no condition".

* Labels are int64 (B,); -1 means no condition.
* Embeddings are floats (B, L, C): L tokens of C numbers each, stored outputs of a text encoder. A token of zeros is
  padding, as given by the mask of the encoder. A sample that has only padding has no condition.

The mask is part of the tensor: an embedding is indexed, moved and concatenated like labels, a linear map without bias
keeps its mask, and label dropout, classifier-free guidance and padding all use zeros.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_guide.denoiser import Denoiser

__all__ = [
    "concatenate_conditions",
    "mask_tokens",
    "pad_tokens",
    "token_mask",
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
    missing = ~token_mask(tokens).any(dim=1)
    return torch.where(missing[:, None, None], pad_tokens(empty.to(tokens), length), tokens)


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
