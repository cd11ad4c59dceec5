"""Distances to reference data, of the clean estimate or of network features of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_guide.denoiser import Trajectory
from lightning_guide.objectives.energy import Energy, Loss
from lightning_guide.utils.arrays import read_array
from lightning_guide.utils.devices import to_device
from lightning_guide.utils.errors import did_you_mean

__all__ = ["Distance", "NetworkDistance", "SquaredDistance", "Style", "load_references", "references_for"]


def load_references(data: str | Sequence[float] | Tensor, like: Tensor, what: str = "reference examples") -> Tensor:
    """Return `data` as (N, *) with the sample shape, dtype and device of `like` (B, *); one example may lack the N.

    A string is the path of a .npy file with clean examples as denoiser inputs; `what` names them in errors.

    Raises:
        ValueError: if the file does not exist or is not a .npy file, or the examples have another shape.
    """
    examples = _read(os.path.expanduser(data), os.getcwd()) if isinstance(data, str) else torch.as_tensor(data)
    shape = tuple(like.shape[1:])
    if tuple(examples.shape) == shape:
        examples = examples[None]
    if not isinstance(data, str) and not bool(examples.isfinite().all()):
        raise ValueError(f"{what} hold numbers that are not finite")
    if tuple(examples.shape[1:]) != shape or not len(examples):
        where = f" in {data}" if isinstance(data, str) else ""
        hint = _hint_of_latents(tuple(examples.shape[1:]), shape)
        raise ValueError(f"{what}{where} have shape {tuple(examples.shape)}; expected (N, {shape}){hint}")
    return to_device(examples.to(like.dtype), like.device)


def _hint_of_latents(found: tuple[int, ...], expected: tuple[int, ...]) -> str:
    """Return what to do with images for a model of latents, if that is what does not fit."""
    if len(found) != 3 or len(expected) != 3 or found[0] not in (1, 3) or expected[0] in (1, 3):
        return ""
    return "; a model of latents is guided by images through its decoder, by DPS(Decoded(energy, LatentSpace(...)))"


def references_for(
    data: str | Sequence[float] | Tensor,
    trajectory: Trajectory,
    like: Tensor | None = None,
    what: str = "reference examples",
) -> Tensor:
    """Return one example for each sample of `trajectory` (B, *): example i for sample i, modulo their number.

    They have the shape of x, or that of `like` (B, *), and are `what` in errors.

    Raises:
        ValueError: as `load_references`.
    """
    examples = load_references(data, trajectory.x if like is None else like, what)
    numbers = [index % len(examples) for index in trajectory.seeds.samples]
    return examples[to_device(torch.tensor(numbers), examples.device)]


@lru_cache(maxsize=8)
def _read(path: str, folder: str) -> Tensor:  # relative paths begin in the folder
    if not Path(path).is_file():
        hint = did_you_mean(path)
        raise ValueError(f"reference examples: there is no file {path}{hint}; expected a .npy file of clean examples")
    try:
        examples = torch.from_numpy(read_array(path, "a .npy file of numbers"))
    except ValueError as error:
        raise ValueError(f"reference examples: {error}") from None
    if not bool(examples.isfinite().all()):
        raise ValueError(f"reference examples: {path} holds numbers that are not finite")
    return examples


class Distance(Energy):
    """Distance |x - target|, not squared, with a gradient independent of the distance."""

    target: Tensor

    def __init__(self, target: float | Sequence[float] | Tensor) -> None:
        """Take the `target`, of a shape that broadcasts to that of one x."""
        super().__init__()
        self.register_buffer("target", torch.as_tensor(target, dtype=torch.float64))

    def difference(self, x: Tensor) -> Tensor:
        """Return x - target (B, d) of `x` (B, *)."""
        return (x - self.target.to(x)).flatten(1)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the loss (B,)."""
        return self.difference(x).norm(dim=1)


class SquaredDistance(Distance):
    """Squared distance |x - target|^2 / (2 temperature^2), the likelihood N(target; x, temperature^2 I)."""

    def __init__(self, target: Sequence[float] | Tensor, temperature: float = 1.0) -> None:
        """Take the `target`, of a shape that broadcasts to that of one x, and the `temperature`.

        Raises:
            ValueError: unless `temperature` is positive.
        """
        super().__init__(target)
        if not temperature > 0:
            raise ValueError(f"SquaredDistance needs temperature > 0, got {temperature}")
        self.temperature = temperature

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the loss (B,)."""
        return self.difference(x).square().sum(1) / (2 * self.temperature**2)


class NetworkDistance(Energy):
    """Distance of network features |phi(x) - phi(reference)|, not squared: segmentation maps, sketches, identities.

    Sample i has reference i, modulo the number of references.
    """

    def __init__(self, network: nn.Module, reference: str | Sequence[float] | Tensor) -> None:
        """Take the `network` phi and the `reference`, one or several clean x or a file of them (`load_references`)."""
        super().__init__()
        self.network, self.reference = network, reference

    def start(self, trajectory: Trajectory) -> Loss:
        """Return the loss for the references of the samples of `trajectory`."""
        with torch.no_grad():
            target = self._features(references_for(self.reference, trajectory))
        return lambda x, condition, number: (self._features(x) - target[number]).flatten(1).norm(dim=1)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the loss (B,) of samples 0 ... B - 1."""
        references = load_references(self.reference, x)
        with torch.no_grad():
            target = self._features(references[torch.arange(len(x), device=x.device) % len(references)])
        return (self._features(x) - target).flatten(1).norm(dim=1)

    def _features(self, x: Tensor) -> Tensor:
        features: Tensor = self.network(x)
        return features


class Style(NetworkDistance):
    """Style loss |Gram(phi(x)) - Gram(phi(reference))| / scale with Gram = F F^T / pixels of F (channels, pixels).

    Gatys et al. 2016. Ye et al. 2024 use the second hidden layer of CLIP and a scale of 100.
    """

    def __init__(self, network: nn.Module, reference: str | Sequence[float] | Tensor, *, scale: float = 1.0) -> None:
        """Take a `network` from images to features (B, C, H, W), the `reference` and the `scale`.

        Raises:
            ValueError: unless `scale` is positive.
        """
        super().__init__(network, reference)
        if not scale > 0:
            raise ValueError(f"Style needs scale > 0, got {scale}")
        self.scale = scale

    def _features(self, x: Tensor) -> Tensor:
        features = super()._features(x).flatten(2)  # (B, C, pixels)
        return features @ features.mT / features.shape[-1] / self.scale
