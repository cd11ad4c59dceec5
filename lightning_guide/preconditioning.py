"""EDM preconditioning: raw networks and the denoisers made of them.

Karras et al. 2022, https://arxiv.org/abs/2206.00364, table 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_guide.denoiser import Denoiser, expand
from lightning_guide.utils.recipe import HasRecipe

__all__ = ["Network", "Preconditioned"]


class Network(HasRecipe, nn.Module, ABC):
    """Base of raw networks F(x, c_noise, embedding) under a preconditioning.

    Attributes:
        data_shape: shape of one x, without the batch.
        num_classes: number of labels, 0 for a network without labels.
        token_channels: C of the tokens of embeddings (B, L, C), 0 for a network without embeddings.
        resizable: whether x may have other axes than those of `data_shape` after the first (crops, for example).
        parts: name patterns of the submodules that a method acts on by default, by kind of part: "attention"
            (replaceable attention cores), "block", "dropout", "noise_embedding", "label_embedding".
    """

    data_shape: tuple[int, ...]
    num_classes: int
    token_channels: int = 0
    resizable: bool = False
    parts: Mapping[str, Sequence[str]] = {}

    @abstractmethod
    def embed(self, condition: Tensor | None, batch: int) -> Tensor | None:
        """Embed labels (B,) or tokens (B, L, C); -1, tokens of zeros or None mean no condition."""

    @abstractmethod
    def forward(self, x: Tensor, c_noise: Tensor, embedding: Tensor | None) -> Tensor:
        """Return F `(B, *data_shape)` for the scaled input `x` and `c_noise` (B,)."""

    def augmented(self, embedding: Tensor | None, vector: Tensor) -> Tensor:
        """Condition `embedding` (of `embed`) on augmentation parameters `vector` (B, A) as well; zeros change nothing.

        Raises:
            ValueError: if the network does not support augmentation parameters.
        """
        raise ValueError(f"{type(self).__name__} has no input for augmentation parameters; DDPMpp has one")

    def constrain(self) -> None:
        """Project the parameters after an optimizer step; nothing by default."""

    def fused(self) -> Network:
        """Return an inference-only copy with precomputed weights, which gives the same at less cost; by default itself.

        Its submodules have the same names. The copy is frozen; later changes of the parameters are not reflected.
        """
        return self


class Preconditioned(Denoiser):
    r"""EDM preconditioning of a network, D = c_skip x + c_out F(c_in x, c_noise).

    c_skip = s_d^2 / (s^2 + s_d^2), c_out = s s_d / sqrt(s^2 + s_d^2), c_in = 1 / sqrt(s^2 + s_d^2), c_noise = ln(s) / 4
    with s = sigma and s_d = sigma_data (Karras et al. 2022, table 1).

    Examples:
        >>> from lightning_guide.networks import PointMLP
        >>> denoiser = Preconditioned(PointMLP((2,), width=8), sigma_data=0.5)
        >>> x = torch.tensor([[1.0, -2.0]])
        >>> denoiser(x, torch.tensor(0.5)).detach()  # F starts at zero, and c_skip is 1/2 at sigma = sigma_data
        tensor([[ 0.5000, -1.0000]])
    """

    def __init__(self, network: Network, *, sigma_data: float = 0.5) -> None:
        """Wrap `network`; `sigma_data` is the standard deviation of the encoded data.

        Raises:
            ValueError: unless `sigma_data` is positive.
        """
        super().__init__()
        if not sigma_data > 0:
            raise ValueError(f"sigma_data must be positive, got {sigma_data}")
        self.network = network
        self.data_shape = tuple(network.data_shape)
        self.num_classes, self.token_channels = network.num_classes, network.token_channels
        self.sigma_data = sigma_data

    def forward(
        self, x: Tensor, sigma: Tensor, condition: Tensor | None = None, *, augmentation: Tensor | None = None
    ) -> Tensor:
        """Return D `(B, *data_shape)`; `augmentation` (B, A) holds the augmentation parameters of `x`, if any.

        Raises:
            ValueError: if `x` does not have the shape of the network, or its channels if the network is resizable.
        """
        shape, expected = tuple(x.shape[1:]), self.data_shape
        if self.network.resizable and len(shape) == len(expected):
            shape, expected = shape[:1], expected[:1]
        if shape != expected:
            raise ValueError(
                f"x has shape {tuple(x.shape[1:])} without the batch; this network expects {self.data_shape}"
            )
        sigma = sigma.to(torch.float32)
        s, s_d = expand(sigma, x), self.sigma_data
        c_in = (s**2 + s_d**2).rsqrt()
        c_skip, c_out = (s_d * c_in) ** 2, s * s_d * c_in
        c_noise = (sigma.log() / 4).expand(len(x))
        embedding = self.network.embed(condition, len(x))
        if augmentation is not None:
            embedding = self.network.augmented(embedding, augmentation)
        return c_skip * x + c_out * self.network(c_in * x, c_noise, embedding).to(torch.float32)

    def constrain(self) -> None:
        """Project the parameters of the network."""
        self.network.constrain()
