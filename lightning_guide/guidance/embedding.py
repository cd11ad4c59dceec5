"""An embedding, of a noise level or of labels, that is changed on its way into the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from lightning_guide.guidance.around import Around

__all__ = ["ChangedEmbedding"]


class ChangedEmbedding(Around):
    """change(e) for the embedding e (B, E) that the inner module makes of its input."""

    def __init__(self, inner: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__(inner)
        self.change = change

    def forward(self, x: Tensor, *others: Any) -> Tensor:
        """`(B, E)` of the embedding's input `x` (B, *).

        Raises:
            ValueError: if the inner module takes more than that, which no embedding does.
        """
        if others:
            kind = type(self.inner).__name__
            raise ValueError(f"noise on an embedding needs a layer of one input that returns (B, E); a {kind} is none")
        return self.change(self.inner(x))
