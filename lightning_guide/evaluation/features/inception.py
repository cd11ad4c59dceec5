"""Inception-v3 features of published FIDs, with the 2015 TensorFlow weights and resizing, from torch-fidelity."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from lightning_guide.evaluation.features.base import FeatureExtractor, check_images
from lightning_guide.pretrained.loading import announce_download
from lightning_guide.utils.errors import did_you_mean

__all__ = ["InceptionFeatures"]

_BLOCKS = (
    "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2",
    "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c",
    "Mixed_6d", "Mixed_6e", "Mixed_7a", "Mixed_7b", "Mixed_7c", "AvgPool",
)  # fmt: skip
_FILE = "weights-inception-2015-12-05-6726825d.pth"  # of torch-fidelity 0.4; 23.9 million float32
_SPATIAL = _BLOCKS.index("Mixed_6d")


class InceptionFeatures(FeatureExtractor):
    """Inception-v3 pooled features (2048), class logits or spatial features, of images uint8 (B, 1 or 3, H, W).

    Images have any size. The network is that of the package torch-fidelity (`pip install torch-fidelity`), run once a
    batch for all outputs. Heusel et al. 2017,
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
        return self._outputs(x).pooled

    def logits(self, x: Tensor) -> Tensor:
        """Return logits (B, 1008) without the bias of the last layer, as in the published Inception score.

        Raises:
            ValueError: as for features.
        """
        return self._outputs(x).logits

    def spatial(self, x: Tensor) -> Tensor:
        """Return the spatial features (B, 2023) of sFID, 17 x 17 places of 7 channels, in this order.

        Nash et al. 2021, https://arxiv.org/abs/2103.03841, take the first 7 channels of the map `mixed_6/conv`. In the
        names of torchvision this is the 1x1 branch of `Mixed_6d`, after its ReLU, 192 channels. That correspondence
        follows from the order of the blocks; no published sFID was reproduced.

        Raises:
            ValueError: as for features.
        """
        return self._outputs(x).spatial

    def downloads(self) -> bool:
        """Return whether no file is named."""
        return self.weights is None

    def comparable(self) -> str:
        """Return that published FIDs are, by the resizing that they used."""
        return (
            "FIDs and Inception scores of torch-fidelity, ADM's evaluator and EDM with images as they are (bilinear of "
            "TensorFlow 1 to 299), FIDs of clean-fid after --size 299 --resize clean-fid; not those of torchvision's "
            "Inception weights; no published figure was reproduced"
        )

    def _outputs(self, x: Tensor) -> _Outputs:
        """Return all outputs of one pass through the network."""
        check_images(x)
        return self.of_batch("outputs", x, lambda: _pass(self.network(x), x.expand(-1, 3, -1, -1)))

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
        else:
            announce_download(self.title(), _FILE, megabytes=96, place="github.com/toshas/torch-fidelity")
        try:
            network: nn.Module = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], weights)
        except Exception as error:  # raised by the download or by load_state_dict
            raise ValueError(
                f"weights of Inception-v3 cannot be loaded from {self.weights or 'the download of torch-fidelity'} "
                f"({' '.join(str(error).split())[:200]}); expected its file weights-inception-2015-12-05; "
                "download it on a machine with internet access and name it in `weights`"
            ) from None
        return network


class _Outputs(NamedTuple):
    pooled: Tensor
    logits: Tensor
    spatial: Tensor


def _pass(network: nn.Module, x: Tensor) -> _Outputs:
    """Return the outputs of torch-fidelity's network for images uint8 (B, 3, H, W), from its blocks, one by one."""
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    h = (interpolate_bilinear_2d_like_tensorflow1x(x.float(), size=(299, 299), align_corners=False) - 128) / 128
    blocks = dict(network.named_children())
    for name in _BLOCKS[:_SPATIAL]:
        h = blocks[name](h)
    places = network.get_submodule("Mixed_6d.branch1x1")(h)[:, :7].permute(0, 2, 3, 1).flatten(1)
    for name in _BLOCKS[_SPATIAL:]:
        h = blocks[name](h)
    pooled = h.flatten(1)
    return _Outputs(pooled, pooled @ cast(Tensor, blocks["fc"].weight).T, places)


def _check_holds_tensors(path: str) -> None:
    """Raise ValueError if the file holds more than tensors; the package would execute a pickle."""
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"weights of Inception-v3: {path} is not a file of tensors only ({reason})") from None
