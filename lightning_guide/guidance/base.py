"""Base class of guidances, and the references to models that a config can name before any model exists.

`Main` is the model under evaluation, `Unadapted` the same without its low-rank additions, `Snapshot` a model from the
snapshots of a run. `Denoiser.resolve` replaces them by real models when an evaluation begins.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from lightning_guide.data import Prompts
from lightning_guide.denoiser import Denoiser, DerivedDenoiser, Models, Predict, Prediction, Trajectory
from lightning_guide.seeds import SampleSeeds
from lightning_guide.utils.arguments import CheckedArguments
from lightning_guide.utils.modules import map_modules

__all__ = ["Guidance", "LastPrediction", "Main", "Reference", "Snapshot", "Unadapted", "Unresolved"]


class Guidance(CheckedArguments, DerivedDenoiser):
    """Base of guidances: denoisers made of denoisers, with the shapes of `positive`."""

    positive: Denoiser

    @property
    def underlying(self) -> Denoiser:
        """`positive`."""
        return self.positive

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the guided D (B, *) at one common `sigma` (), as the first step of a new trajectory.

        Raises:
            ValueError: if `sigma` is no tensor, or holds different levels, since an interval is decided for all samples
                at once; and whatever `resolve` refuses.
        """
        if not isinstance(sigma, Tensor):
            raise ValueError(f"{type(self).__name__}: sigma is {sigma!r}; expected a tensor, as torch.tensor(0.7)")
        if sigma.numel() > 1 and bool((sigma != sigma.reshape(-1)[0]).any()):
            raise ValueError(f"{type(self).__name__} guides at one noise level at a time, got {sigma.numel()} of them")
        level = sigma.reshape(-1)[0]
        trajectory = Trajectory(x=x, seeds=SampleSeeds(0, range(len(x))), sigma=float(level))
        return self.resolve(Unresolved()).start(trajectory)(x, level, condition).clean

    def resolve(self, models: Models) -> Denoiser:
        """Return a copy with every reference replaced by its model, in nested guidances as well."""
        resolved = copy.copy(self)
        resolved._modules = {
            name: None if child is None else map_modules(child, lambda part: _resolved(part, models))
            for name, child in self._modules.items()
        }
        return resolved

    def without_effect(self, steps: Sequence[Trajectory]) -> Iterator[str]:
        """Yield sentences if this resolved guidance changes nothing in any of the `steps` of a sampler."""
        yield from ()


def _resolved(module: nn.Module, models: Models) -> nn.Module | None:
    """Return the resolution of a denoiser, None for any other module."""
    return module.resolve(models) if isinstance(module, Denoiser) else None


class LastPrediction(Guidance):
    """The positive, whose last clean estimate can be read: `clean` (B, *), None before the first call."""

    clean: Tensor | None = None

    def __init__(self, positive: Denoiser) -> None:
        """Watch `positive`."""
        super().__init__()
        self.positive = positive

    def start(self, trajectory: Trajectory) -> Predict:
        """Return the positive of one trajectory."""
        positive = self.positive.start(trajectory)

        def predict(x: Tensor, sigma: Tensor, condition: Tensor | None) -> Prediction:
            prediction = positive(x, sigma, condition)
            self.clean = prediction.clean
            return prediction

        return predict


_HOW = "expected a model in its place, as positive=model, or Run.sample, which resolves references"


class Reference(CheckedArguments, Denoiser):
    """Base of references: placeholders for a denoiser that does not exist yet."""

    def __getattr__(self, name: str) -> Any:
        """Refuse attributes that only the model has: data_shape, num_classes and sigma_data."""
        if name in ("data_shape", "num_classes", "sigma_data"):
            raise ValueError(f"{type(self).__name__} is a reference without {name}; {_HOW}")
        return super().__getattr__(name)

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        """Refuse the call with a ValueError: a reference must be resolved first."""
        raise ValueError(f"{type(self).__name__} is a reference; {_HOW}")

    def without_effect(self, steps: Sequence[Trajectory]) -> Iterator[str]:
        """Yield sentences if the model will be that of another reference."""
        yield from ()


class Unresolved:
    """Models of a direct call: references stay what they are, so that a guidance on models is checked all the same."""

    prompts: Prompts | None = None

    @property
    def main(self) -> Denoiser:
        """`Main`."""
        return Main()

    def snapshot(self, *, run: str | None, images: int | float | str, sigma_rel: float) -> Denoiser:
        """Return `Snapshot`."""
        return Snapshot(images, sigma_rel, run)


class Main(Reference):
    """The model under evaluation."""

    def resolve(self, models: Models) -> Denoiser:
        """Return that model."""
        return models.main


class Unadapted(Reference):
    """The model under evaluation without its low-rank additions, whose weights it shares."""

    def resolve(self, models: Models) -> Denoiser:
        """Return that model.

        Raises:
            ValueError: if the model under evaluation has no low-rank additions.
        """
        if (model := models.main.unadapted) is None:
            kind = type(models.main).__name__
            raise ValueError(
                f"Unadapted is a LowRank model without its additions; the model under evaluation, a {kind}, has none"
            )
        return model.eval().requires_grad_(False)


class Snapshot(Reference):
    """The average of width `sigma_rel` after `images` of training of `run` (None: the run under evaluation)."""

    def __init__(self, images: int | float | str = "1/1", sigma_rel: float = 0.10, run: str | None = None) -> None:
        """`images`: a count, or a fraction of the planned run such as "1/16"; `sigma_rel`: width of the average."""
        super().__init__()
        self.images, self.sigma_rel, self.run = images, sigma_rel, run

    def resolve(self, models: Models) -> Denoiser:
        """Return the model, read or rebuilt from the snapshots."""
        return models.snapshot(run=self.run, images=self.images, sigma_rel=self.sigma_rel)
