"""An embedding, of a noise level or of labels, that is changed on its way into the network."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from lightning_guide.guidance.around import Around

__all__ = ["ChangedEmbedding"]


class ChangedEmbedding(Around):
    """change(e) for the embedding e (B, E) that the inner module makes of its input."""

    def __init__(self, inner: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__(inner)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        """`(B, E)` of the embedding's input `x` (B, *)."""
        return self.change(self.inner(x))
