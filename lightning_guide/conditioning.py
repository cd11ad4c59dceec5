"""Conditions: class labels, or the embedding of a text; what "no condition" is, and what an evaluation asks for.

* Labels are int64 (B,); -1 is no condition.
* Embeddings are floats (B, L, C): L tokens of C numbers each, stored outputs of a text encoder. A token of zeros is no
  token: it stands where the encoder's mask says padding. A sample without any token has no condition.

The mask travels inside the tensor: an embedding is indexed, moved and joined like labels are, a linear map without bias
keeps its mask, and label dropout, classifier-free guidance and padding are one and the same thing, zeros.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_guide.denoiser import Denoiser

__all__ = ["concatenate_conditions", "mask_tokens", "pad_tokens", "token_mask", "condition_for", "drop_condition"]


def mask_tokens(tokens: Tensor, mask: Tensor) -> Tensor:
    """`tokens` (*, L, C) with zeros where `mask` (*, L) is 0 or False.

    Raises:
        ValueError: if shapes differ, the mask holds anything but 0 and 1 (such as what is added to logits), a token
            that counts is not finite, or is all zeros: nobody could tell it from padding.
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
    """Mask (*, L) of the tokens of `tokens` (*, L, C): True where one is not all zeros."""
    return (tokens != 0).any(dim=-1)


def pad_tokens(tokens: Tensor, length: int) -> Tensor:
    """`tokens` (*, L, C) with `length` - L tokens of zeros behind them.

    Raises:
        ValueError: if there are more than `length`.
    """
    L = tokens.shape[-2]
    if L > length:
        raise ValueError(f"an embedding has {L} tokens; expected at most {length}")
    return F.pad(tokens, (0, 0, 0, length - L))


def drop_condition(condition: Tensor, dropped: Tensor) -> Tensor:
    """`condition`, labels (B,) or embeddings (B, L, C), replaced by none where `dropped` (B,) is True."""
    if condition.is_floating_point():
        return condition.masked_fill(dropped[:, None, None], 0)
    return condition.masked_fill(dropped, -1)


def concatenate_conditions(conditions: Sequence[Tensor | None], batch: int, device: torch.device) -> Tensor:
    """Conditions of `batch` samples each as those of one large batch; None is no condition for the whole of its part.

    Embeddings of different lengths are padded to the longest.
    """
    given = [condition for condition in conditions if condition is not None]
    if not any(condition.is_floating_point() for condition in given):
        none = torch.full((batch,), -1, device=device)
        return torch.cat([none if condition is None else condition for condition in conditions])
    length = max(tokens.shape[1] for tokens in given)
    nothing = given[0].new_zeros(batch, length, given[0].shape[2])
    return torch.cat([nothing if tokens is None else pad_tokens(tokens, length) for tokens in conditions])


def condition_for(condition: Tensor | None, denoiser: Denoiser) -> Tensor | None:
    """`condition` as a part of a guidance passes it on to its `denoiser`: no labels to one that knows none.

    A guide by labels then steers a model without; embeddings are for the model, and are passed on.
    """
    labels = condition is not None and not condition.is_floating_point()
    return None if labels and not denoiser.num_classes else condition
