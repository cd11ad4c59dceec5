"""Spatial features of an extractor that has them, as an extractor of its own."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from lightning_guide.evaluation.features.base import FeatureExtractor

__all__ = ["SpatialFeatures"]


class SpatialFeatures(FeatureExtractor):
    """Features `spatial` of another extractor, such as `InceptionFeatures`; both outputs cost one pass of its network.

    Attributes:
        source: the other extractor, which loads the network.
    """

    published = "sfid"

    def __init__(self, source: FeatureExtractor) -> None:
        """Take an extractor with spatial features.

        Raises:
            ValueError: if it has none.
        """
        super().__init__()
        if not hasattr(source, "spatial"):
            raise ValueError(f"{source.title()} has no spatial features; expected an extractor as InceptionFeatures")
        self.source = source

    def extract(self, x: Tensor) -> Tensor:
        """Return the spatial features (B, *)."""
        features: Tensor = self.source.spatial(x)  # type: ignore[operator]
        return features

    def title(self) -> str:
        """Return the class with the title of the other extractor."""
        return f"{type(self).__name__}({self.source.title()})"

    def missing(self) -> Iterator[str]:
        """Yield nothing: what the other extractor lacks, it says itself."""
        yield from ()

    def _load(self) -> nn.Module:
        network: nn.Module = self.source.network()
        return network
