"""An objective of pictures as an objective of their latents: the gradient runs through the decoder."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_guide.objectives.objective import Objective

__all__ = ["Decoded"]


class Decoded(Objective):
    """f(decoder(z)): linearised at the latents z of a sample, one pass through the decoder a round.

    The paper linearises at the picture instead and passes the decoder at each step: `LookAhead(decoder=...)`.
    """

    def __init__(self, objective: Objective, decoder: nn.Module) -> None:
        """`objective` of what `decoder` makes of latents; its parameters get no gradients."""
        super().__init__()
        self.objective, self.decoder = objective, decoder.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """f (B,) of latents `x` (B, *)."""
        return self.objective.value(self.decoder(x))
