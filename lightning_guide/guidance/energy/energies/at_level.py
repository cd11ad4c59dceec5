"""A network of noisy data, asked at one noise level: a guide or a judge of data that carry that much noise."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_guide.recipe import Recorded

__all__ = ["AtLevel"]


class AtLevel(Recorded, nn.Module):
    """f(x, sigma) with a fixed sigma, as a function of x."""

    def __init__(self, network: nn.Module, sigma: float) -> None:
        """`network` maps (x, sigma ()) to logits and says their number in `num_classes`, such as `RunNetwork`.

        Raises:
            ValueError: unless `sigma` is positive.
        """
        super().__init__()
        if not sigma > 0:
            raise ValueError(f"AtLevel needs sigma > 0, got {sigma}")
        self.network, self.sigma = network, sigma

    @property
    def num_classes(self) -> int:
        """K of the network."""
        return int(self.network.num_classes)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of `x` (B, *)."""
        answer: Tensor = self.network(x, x.new_tensor(self.sigma))
        return answer
