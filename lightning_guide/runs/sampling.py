"""Sample any denoiser in one call."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from lightning_guide.denoiser import Denoiser
from lightning_guide.device_seeds import Noise, sample_seeds
from lightning_guide.inference import fuse_weights
from lightning_guide.samplers.base import Sampler
from lightning_guide.samplers.heun import Heun
from lightning_guide.utils.scalars import check_whole

__all__ = ["find_device", "sample"]


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
    noise: Noise = "host",
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
        device: where to sample; the denoiser is moved there. Default: where its weights are.
        noise: where random numbers are computed, as in `Evaluation`.

    Raises:
        ValueError: if an argument is not what it should be, the condition not one that the denoiser is made for, or
            nothing gives the number of samples.

    Examples:
        >>> from lightning_guide.distributions import gaussian
        >>> from lightning_guide.samplers import Euler
        >>> x = sample(gaussian([1.0, -1.0], 0.5), Euler(), count=3)
        >>> x.shape, bool((x[1] == sample(gaussian([1.0, -1.0], 0.5), Euler(), count=2)[1]).all())
        (torch.Size([3, 2]), True)
    """
    if not isinstance(denoiser, Denoiser):
        expected = "expected a model such as load(run), or a guidance"
        raise ValueError(f"sample: the denoiser is {_shown(denoiser)}; {expected}")
    if not isinstance(sampler, Sampler | None):
        raise ValueError(f"sample: the sampler is {_shown(sampler)}; expected one such as Heun(18)")
    denoiser = denoiser.resolve(_Given(prompts))  # guidances check what they need
    condition = _condition(denoiser, labels, prompts)
    given = count if condition is None else len(condition)
    if given is None:
        raise ValueError("sample: nothing gives the number of samples; expected labels, prompts or count")
    rows = check_whole(given, f"sample: {'count' if condition is None else 'the number of prompts'}", least=1)
    size = check_whole(batch_size, "sample: batch_size", least=1)
    if count is not None and count != rows:
        raise ValueError(f"sample: count is {count}, but there are {rows} labels or prompts; expected the same number")
    seed = check_whole(seed, "sample: seed", least=0)
    weights = next(chain(denoiser.parameters(), denoiser.buffers()), None)
    device = find_device("cpu" if weights is None else weights.device) if device is None else find_device(device)
    training = {module: module.training for module in denoiser.modules()}
    parts = []
    try:
        with torch.inference_mode(False):  # guidance by gradients needs them
            model = fuse_weights(denoiser.eval().to(device))
            for first in range(0, rows, size):
                seeds = sample_seeds(noise, seed, range(first, min(first + size, rows)))
                part = None if condition is None else condition[first : first + size]
                parts.append((sampler or Heun()).sample(model, seeds=seeds, condition=part, device=device).x)
    finally:
        for module, mode in training.items():
            module.training = mode
    return torch.cat(parts)


class _Given:
    """The models of `sample`: none under evaluation; its prompts are those of the evaluation."""

    def __init__(self, prompts: Tensor | None) -> None:
        self.prompts = prompts

    @property
    def main(self) -> Denoiser:
        raise ValueError(
            "sample: the guidance is of the model under evaluation, and there is none; expected the model itself, as "
            "positive=model, or Run.sample"
        )

    def snapshot(self, *, run: str | None, images: int | float | str, sigma_rel: float) -> Denoiser:
        raise ValueError(
            "sample: a Snapshot is found by a run; expected a model in its place, Run.model(images=...), or Run.sample"
        )


def find_device(device: torch.device | str) -> torch.device:
    """Return `device` once a tensor could be made on it.

    Raises:
        ValueError: naming it, if there is no such device.
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"the device {device!r} cannot be used here: {reason}") from None


def _condition(denoiser: Denoiser, labels: Sequence[int] | Tensor | None, prompts: Tensor | None) -> Tensor | None:
    """Labels int64 (B,) or embeddings (B, L, C) as `denoiser` reads them."""
    kind = type(denoiser).__name__
    if labels is not None and prompts is not None:
        raise ValueError("sample: both labels and prompts are given; expected one of them")
    if labels is not None:
        if not denoiser.num_classes:
            raise ValueError(f"sample: labels are given, but this {kind} has no classes; expected count or prompts")
        return _labels(labels, denoiser.num_classes)
    if prompts is not None:
        if not denoiser.token_channels:
            raise ValueError(f"sample: prompts are given, but this {kind} reads none; expected count or labels")
        expected = f"expected embeddings (B, L, C), a floating tensor with C = {denoiser.token_channels}"
        if not isinstance(prompts, Tensor):
            raise ValueError(f"sample: prompts are {_shown(prompts)}; {expected}")
        if prompts.ndim != 3 or prompts.shape[2] != denoiser.token_channels or not prompts.is_floating_point():
            raise ValueError(f"sample: prompts have shape {tuple(prompts.shape)}, {prompts.dtype}; {expected}")
    return prompts


def _labels(labels: Sequence[int] | Tensor, num_classes: int) -> Tensor:
    """Check labels and return them as int64 (B,)."""
    try:
        classes = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        classes = torch.empty(0, 0)
    whole = not (classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool)
    expected = f"expected whole numbers from -1 (none) to {num_classes - 1}, one for each sample"
    if classes.ndim != 1 or not len(classes) or not whole:
        raise ValueError(f"sample: labels are {_shown(labels)}; {expected}")
    classes = classes.to(torch.int64)
    if (wrong := ((classes < -1) | (classes >= num_classes)).nonzero()).numel():
        first = int(wrong[0])
        raise ValueError(f"sample: the label of sample {first} is {int(classes[first])}; {expected}")
    return classes


def _shown(value: object) -> str:
    """Short text of an argument for messages."""
    return f"a {type(value).__name__}" if isinstance(value, nn.Module) else " ".join(reprlib.repr(value).split())
