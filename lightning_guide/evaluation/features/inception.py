"""The Inception-v3 of published FIDs: the 2015 TensorFlow weights and resizing, out of torch-fidelity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_guide.evaluation.features.base import FeatureExtractor, check_pictures

__all__ = ["InceptionFeatures"]


class InceptionFeatures(FeatureExtractor):
    """2048 pooled features of Inception-v3, or class logits, of pictures uint8 (B, 1 or 3, H, W) of any size.

    The network is that of the package torch-fidelity (`pip install torch-fidelity`), read at first use. Heusel et al.
    2017, https://arxiv.org/abs/1706.08500.
    """

    published = "fid"

    def __init__(self, weights: str | None = None) -> None:
        """`weights`: a local copy of its weights file (a state dict); None for the package's own download."""
        super().__init__()
        self.weights = weights
        self._network: Any = None

    def extract(self, x: Tensor) -> Tensor:
        """Features (B, 2048)."""
        return self._both(x)[0]

    def logits(self, x: Tensor) -> Tensor:
        """Logits (B, 1008) without the bias of the last layer, those of the published Inception score.

        Raises:
            ValueError: as for features.
        """
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            return self._both(x)[1]

    def _both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_pictures(x)
        self.load()
        features, logits = self._network.to(x.device)(x.expand(-1, 3, -1, -1))
        return features, logits

    def load(self) -> None:
        """Reads the network.

        Raises:
            ValueError: if the package or its weights cannot be had, or the file holds more than tensors.
        """
        if self._network is None:
            self._network = self._load()

    def _load(self) -> Any:
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError:
            raise ValueError("InceptionFeatures needs the package torch-fidelity: pip install torch-fidelity") from None
        if self.weights is not None:
            if not Path(self.weights).is_file():
                raise ValueError(f"weights of Inception-v3: there is no file {self.weights}")
            _check_holds_tensors(self.weights)
        try:
            return FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], self.weights)
        except Exception as error:  # whatever the download or the state dict have to say
            raise ValueError(
                f"weights of Inception-v3 cannot be loaded from {self.weights or 'the download of torch-fidelity'} "
                f"({' '.join(str(error).split())[:200]}); expected its file weights-inception-2015-12-05, fetched "
                "where there is a network and named in `weights`"
            ) from None


def _check_holds_tensors(path: str) -> None:
    """The package would run a pickle; it is only given a file that holds nothing but tensors.

    Raises:
        ValueError: if the file holds anything else.
    """
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"weights of Inception-v3: {path} is no file of tensors alone ({reason})") from None
