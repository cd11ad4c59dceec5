"""An embedding, of a noise level or of labels, that is changed on its way into the network."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

__all__ = ["ChangedEmbedding"]


class ChangedEmbedding(nn.Module):
    """change(e) for the embedding e (B, E) that a module makes of its input."""

    def __init__(self, embedding: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.embedding, self.change = embedding, change

    @property
    def weight(self) -> Tensor:
        """That of the embedding, whose dtype and device networks give to the rows they embed."""
        weight = self.embedding.weight
        assert isinstance(weight, Tensor)
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """`(B, E)` of the embedding's input `x` (B, *)."""
        return self.change(self.embedding(x))
