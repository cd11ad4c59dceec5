"""LPIPS of two images as the squared distance of two vectors, Zhang et al. 2018, https://arxiv.org/abs/1801.03924."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_guide.evaluation.features.base import FeatureExtractor, check_images
from lightning_guide.pretrained.loading import announce_download, read_tensors

__all__ = ["LpipsFeatures"]


class LpipsFeatures(FeatureExtractor):
    """Vectors g(x) of images with |g(x) - g(y)|^2 = LPIPS(x, y), of AlexNet or VGG-16.

    LPIPS is sum_l mean_hw sum_c w_lc (f_lchw(x) - f_lchw(y))^2 with features f of layer l, of length 1 over the
    channels c, and learned weights w_lc >= 0. So g holds sqrt(w_lc / (H_l W_l)) f_lchw. Images are read at their own
    size, at least 32 pixels; one channel is repeated three times. The network and w are those of torchmetrics.
    """

    def __init__(self, network: Literal["alex", "vgg"] = "alex", weights: str | None = None) -> None:
        """Choose the network; `weights`: a local file of torchvision's AlexNet or VGG-16, None for its download."""
        super().__init__()
        if network not in ("alex", "vgg"):
            raise ValueError(f"LpipsFeatures takes the network 'alex' or 'vgg', got {network!r}")
        self.name, self.weights = network, weights

    def extract(self, x: Tensor) -> Tensor:
        """Return g (B, D) of images uint8 (B, 1 or 3, H, W)."""
        check_images(x)
        network = self.network(x)
        maps = network.net(network.scaling_layer(x.expand(-1, 3, -1, -1).to(torch.float32) / 127.5 - 1))
        rows = []
        for f, head in zip(maps, network.lins, strict=True):
            w = head.model[-1].weight  # (1, C, 1, 1)
            rows.append((F.normalize(f, dim=1) * (w / f[0, 0].numel()).sqrt()).flatten(1))
        return torch.cat(rows, dim=1)

    def title(self) -> str:
        """Return the class with the network."""
        return f"{type(self).__name__}({self.name})"

    def downloads(self) -> bool:
        """Return whether no file is named."""
        return self.weights is None

    def _load(self) -> nn.Module:
        from torchmetrics.functional.image.lpips import _LPIPS

        if self.weights is None:
            file, megabytes = ("alexnet-owt-7be5be79.pth", 244) if self.name == "alex" else ("vgg16-397923af.pth", 553)
            announce_download(self.title(), file, megabytes=megabytes, place="download.pytorch.org")
        try:
            network: Any = _LPIPS(pretrained=True, net=self.name, pnet_rand=self.weights is not None)
        except Exception as error:  # raised by the download
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"weights of {self.title()} cannot be loaded from torchvision's download ({reason}); name "
                "torchvision's file in `weights`"
            ) from None
        if self.weights is not None:
            state = read_tensors(self.weights, of=self.title())
            layers = network.net.state_dict()  # slice2.3.weight is features.3.weight of torchvision
            try:
                network.net.load_state_dict({name: state["features" + name[name.index(".") :]] for name in layers})
            except Exception as error:  # of many types
                reason = " ".join(str(error).split())[:200]
                raise ValueError(f"{self.weights} does not hold torchvision's weights ({reason})") from None
        assert all(bool((head.model[-1].weight >= 0).all()) for head in network.lins)
        loaded: nn.Module = network
        return loaded
