"""Sample any denoiser in one call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser
from lightning_guide.inference import fuse_weights
from lightning_guide.samplers.base import Sampler
from lightning_guide.samplers.heun import Heun
from lightning_guide.seeds import SampleSeeds

__all__ = ["sample"]


def sample(
    denoiser: Denoiser,
    sampler: Sampler | None = None,
    *,
    labels: Sequence[int] | Tensor | None = None,
    prompts: Tensor | None = None,
    count: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw samples of `denoiser`, a model or a guidance, `(B, *data_shape)` in the units it was trained in.

    Sample i depends on (`seed`, i) and its condition alone, not on `batch_size`, the device or the other samples.

    Args:
        denoiser: a model, or a guidance whose models are given (`positive=model`).
        sampler: default `Heun()`, 32 steps.
        labels: one class for each sample, -1 for none.
        prompts: embeddings (B, L, C), one for each sample.
        count: number of samples where neither labels nor prompts are given.
        seed: of the samples.
        batch_size: samples in one network call.
        device: default: that of the denoiser's weights.

    Raises:
        ValueError: if the condition is not one that the denoiser is made for, or the number of samples is not given.

    Examples:
        >>> from lightning_guide.distributions import gaussian
        >>> from lightning_guide.samplers import Euler
        >>> x = sample(gaussian([1.0, -1.0], 0.5), Euler(), count=3)
        >>> x.shape, bool((x[1] == sample(gaussian([1.0, -1.0], 0.5), Euler(), count=2)[1]).all())
        (torch.Size([3, 2]), True)
    """
    condition = _condition(denoiser, labels, prompts)
    rows = count if condition is None else len(condition)
    if rows is None or rows < 1 or (condition is not None and count not in (None, rows)):
        expected = "labels or prompts" if denoiser.conditional else "count"
        raise ValueError(f"sample: the number of samples is {rows} and count={count}; expected {expected} to give it")
    weights = next(denoiser.parameters(), None)
    device = device if device is not None else "cpu" if weights is None else weights.device
    model = fuse_weights(denoiser.eval().to(device))
    chosen = sampler or Heun()
    parts = []
    for first in range(0, rows, batch_size):
        seeds = SampleSeeds(seed, list(range(first, min(first + batch_size, rows))))
        part = None if condition is None else condition[first : first + batch_size].to(device)
        parts.append(chosen.sample(model, seeds=seeds, condition=part, device=device).x)
    return torch.cat(parts)


def _condition(denoiser: Denoiser, labels: Sequence[int] | Tensor | None, prompts: Tensor | None) -> Tensor | None:
    """Labels int64 (B,) or embeddings (B, L, C) as `denoiser` reads them."""
    kind = type(denoiser).__name__
    if labels is not None and prompts is not None:
        raise ValueError("sample: both labels and prompts are given; expected one of them")
    if labels is not None:
        classes = torch.as_tensor(labels, dtype=torch.int64)
        if not denoiser.num_classes:
            raise ValueError(f"sample: labels are given, but this {kind} has no classes; expected count or prompts")
        if classes.ndim != 1 or bool(((classes < -1) | (classes >= denoiser.num_classes)).any()):
            raise ValueError(f"sample: labels are {labels}; expected a list of -1 (none) to {denoiser.num_classes - 1}")
        return classes
    if prompts is not None and (prompts.ndim != 3 or prompts.shape[2] != denoiser.token_channels):
        raise ValueError(
            f"sample: prompts have shape {tuple(prompts.shape)}; this {kind} reads embeddings (B, L, C) with "
            f"C = {denoiser.token_channels} (0: none)"
        )
    return prompts
