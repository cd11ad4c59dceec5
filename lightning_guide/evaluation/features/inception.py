"""Inception-v3 features of published FIDs, with the 2015 TensorFlow weights and resizing, from torch-fidelity."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_guide.evaluation.features.base import FeatureExtractor, check_images
from lightning_guide.utils.errors import did_you_mean

__all__ = ["InceptionFeatures"]


class InceptionFeatures(FeatureExtractor):
    """Inception-v3 pooled features (2048), or class logits, of images uint8 (B, 1 or 3, H, W) of any size.

    The network is that of the package torch-fidelity (`pip install torch-fidelity`). Heusel et al. 2017,
    https://arxiv.org/abs/1706.08500.
    """

    published = "fid"
    prefix = "_network"

    def __init__(self, weights: str | None = None) -> None:
        """Choose `weights`: a local file of its state dict; None for the package's own download."""
        super().__init__()
        self.weights = weights

    def extract(self, x: Tensor) -> Tensor:
        """Return features (B, 2048)."""
        return self._both(x)[0]

    def logits(self, x: Tensor) -> Tensor:
        """Return logits (B, 1008) without the bias of the last layer, as in the published Inception score.

        Raises:
            ValueError: as for features.
        """
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            return self._both(x)[1]

    def _both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_images(x)
        features, logits = self.network(x)(x.expand(-1, 3, -1, -1))
        return features, logits

    def _load(self) -> nn.Module:
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError:
            raise ValueError("InceptionFeatures needs the package torch-fidelity: pip install torch-fidelity") from None
        weights = None if self.weights is None else os.path.expanduser(self.weights)
        if weights is not None:
            if not Path(weights).is_file():
                raise ValueError(f"weights of Inception-v3: there is no file {weights}{did_you_mean(weights)}")
            _check_holds_tensors(weights)
        try:
            network: nn.Module = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], weights)
        except Exception as error:  # raised by the download or by load_state_dict
            raise ValueError(
                f"weights of Inception-v3 cannot be loaded from {self.weights or 'the download of torch-fidelity'} "
                f"({' '.join(str(error).split())[:200]}); expected its file weights-inception-2015-12-05; "
                "download it on a machine with internet access and name it in `weights`"
            ) from None
        return network


def _check_holds_tensors(path: str) -> None:
    """Raise ValueError if the file holds more than tensors; the package would execute a pickle."""
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"weights of Inception-v3: {path} is not a file of tensors only ({reason})") from None
