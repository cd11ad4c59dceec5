"""Denoisers that run as compiled code (`torch.compile`), on GPUs also as CUDA graphs.

The whole denoiser is one graph: embedding of the condition, coefficients, network. There is one graph for each form of
a call: network, shape of x, kind of condition, with gradients or without. Noise levels, labels and parameters are
tensors in it, so that other levels, or snapshots of the same network, do not compile again. The weights of guidances
are applied to its results.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser, DerivedDenoiser, Prediction

__all__ = ["Call", "Compilation", "Compiled", "compiled_call", "graphed_call"]


Compilation = bool | Literal["graphs"]
"""Whether networks are compiled; "graphs": and replayed as CUDA graphs."""

Call = Callable[[Denoiser, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
"""(denoiser, x (B, *), sigma, condition) -> (clean estimate (B, *), predicted variance or None)."""

_FORMS = 256  # of calls that stay compiled in one process; torch keeps 8 and runs all others as they are


def _predict(denoiser: Denoiser, x: Tensor, sigma: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the prediction as tensors; all compiled calls share the code of this function."""
    prediction = denoiser.predict(x, sigma, condition)
    return prediction.clean, prediction.variance


def compiled_call(backend: str = "inductor", *, mode: str | None = None) -> Call:
    """Return the call of denoisers as code compiled for each shape by `torch.compile`."""
    compiled = torch.compile(_predict, backend=backend, mode=mode, dynamic=False)

    def call(denoiser: Denoiser, x: Tensor, sigma: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor | None]:
        with torch._dynamo.config.patch(recompile_limit=_FORMS):
            return compiled(denoiser, x, sigma, condition)

    return call


def graphed_call() -> Call:
    """Return the call of denoisers on a GPU as CUDA graphs; with gradients as compiled code.

    Results are copied out of the memory of the graph, since samplers and guidances keep some for later steps.
    """
    plain, graphed = compiled_call(), compiled_call(mode="reduce-overhead")

    def call(denoiser: Denoiser, x: Tensor, sigma: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if torch.is_grad_enabled():
            return plain(denoiser, x, sigma, condition)
        torch.compiler.cudagraph_mark_step_begin()
        clean, variance = graphed(denoiser, x, sigma, condition)
        return clean.clone(), None if variance is None else variance.clone()

    return call


class Compiled(DerivedDenoiser):
    """`denoiser`, called through `call`; a copy of it with replaced parts is called in the same way."""

    def __init__(self, denoiser: Denoiser, call: Call) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.call: Call = call

    @property
    def underlying(self) -> Denoiser:
        """The denoiser."""
        return self.denoiser

    @property
    def is_eager(self) -> bool:
        """Whether it runs as it is written."""
        return self.call is _predict

    def run_eagerly(self) -> None:
        """Run as written from now on: for what changes with each call, and would be compiled in each."""
        self.call = _predict

    def predict(self, x: Tensor, sigma: Tensor, condition: Tensor | None) -> Prediction:
        """Return the prediction of the denoiser."""
        clean, variance = self.call(self.denoiser, x, sigma, condition)
        return Prediction(clean, variance=variance)

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return D (B, *data_shape)."""
        return self.predict(x, sigma, condition).clean
