"""Raw networks F(x, c_noise, embedding), which a preconditioning turns into denoisers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_guide.utils.recipe import HasRecipe

__all__ = ["Network"]


class Network(HasRecipe, nn.Module, ABC):
    """Base of raw networks F(x, c_noise, embedding) under a preconditioning.

    Attributes:
        data_shape: shape of one x, without the batch.
        num_classes: number of labels, 0 for a network without labels.
        token_channels: C of the tokens of embeddings (B, L, C), 0 for a network without embeddings.
        null_condition: whether its weights came trained for no condition as well, whatever this run trains.
        resizable: whether x may have other axes than those of `data_shape` after the first (crops, for example).
        stride: height and width of images must be multiples of it.
        parts: name patterns of the submodules that a method acts on by default, by kind of part: "attention"
            (replaceable attention cores), "projection" (linear layers of attention, for low-rank adaptation), "block",
            "dropout", "noise_embedding", "label_embedding".
        stages: name patterns of submodules in the order in which they run, each once in a call. Of the tensors that a
            stage gets, directly or in tuples, those of the length of the batch have one row for each sample, and so
            have all that it returns: a copy of the network that differs in some stages shares a batch with it.
        variances: whether the output has as many channels again, for variances: Nichol and Dhariwal 2021,
            https://arxiv.org/abs/2102.09672, equation 15, with v = (output + 1) / 2.
        offloaded: whether layers get their weights only while they run, so that they cannot be trained.
        recompute: whether gradients compute the activations inside blocks again instead of keeping them (Chen et al.
            2016, https://arxiv.org/abs/1604.06174); None for networks that cannot, which have no blocks.
    """

    data_shape: tuple[int, ...]
    num_classes: int
    token_channels: int = 0
    null_condition: bool = False
    resizable: bool = False
    stride: int = 1
    parts: Mapping[str, Sequence[str]] = {}
    stages: Sequence[str] = ()
    variances: bool = False
    offloaded: bool = False
    recompute: bool | None = None

    @property
    def lowest_label(self) -> int:
        """-1, no condition; 0 for a network with labels that has no class for it."""
        return -1

    @abstractmethod
    def embed(self, condition: Tensor | None, batch: int) -> Tensor | None:
        """Embed labels (B,) or tokens (B, L, C); -1, tokens of zeros or None mean no condition.

        What "no condition" is belongs to the network: it fills such rows with a null class, with zeros, or with the
        embedding of an empty prompt (`conditioning.fill_empty`).
        """

    @abstractmethod
    def forward(self, x: Tensor, c_noise: Tensor, embedding: Tensor | None) -> Tensor:
        """Return F `(B, *data_shape)`, of twice the channels with `variances`, for scaled `x` and `c_noise` (B,)."""

    def augmented(self, embedding: Tensor | None, vector: Tensor) -> Tensor:
        """Condition `embedding` (of `embed`) on augmentation parameters `vector` (B, A) as well; zeros change nothing.

        Raises:
            ValueError: if the network does not support augmentation parameters.
        """
        raise ValueError(f"{type(self).__name__} has no input for augmentation parameters; DDPMpp has one")

    def paired(self, embedding: Tensor, other: Tensor) -> Tensor:
        """Return an embedding of two texts: L tokens of `embedding`, then L of `other`, as far as attention reads them.

        All else is that of `embedding`. Each `TextReader` then finds keys and values of both.

        Raises:
            ValueError: if the network has no attention to texts, or something else reads them as well.
        """
        raise ValueError(f"{type(self).__name__} reads no texts, or not by attention alone, so that it cannot read two")

    def run(self, block: Callable[..., Any], *arguments: Any) -> Any:
        """Return `block(*arguments)`, whose insides gradients compute again if `recompute` is set."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(block, *arguments, use_reentrant=False)
        return block(*arguments)

    def constrain(self) -> None:
        """Project the parameters after an optimizer step; nothing by default."""

    def fused(self) -> Network:
        """Return an inference-only copy with precomputed weights, which gives the same at less cost; by default itself.

        Its submodules have the same names. The copy is frozen; later changes of the parameters are not reflected.
        """
        return self
