"""The base of what changes the embedding of the condition on its way into the network."""

from __future__ import annotations

from lightning_guide.denoiser import Network
from lightning_guide.guidance.perturbed import Replacement

__all__ = ["ConditionPerturbation"]


class ConditionPerturbation(Replacement):
    """Takes the place of the modules that embed labels, output (B, E), or the tokens of texts, (B, L, E)."""

    kind = "label_embedding"

    def chosen(self, network: Network) -> list[str]:
        """As `Perturbation.chosen`.

        Raises:
            ValueError: if the network has neither labels nor embeddings.
        """
        if not (network.num_classes or network.token_channels):
            raise ValueError(
                f"{type(self).__name__} acts on the embedding of labels or texts; this network has none (num_classes=0)"
            )
        return super().chosen(network)
