"""Synthetic samples of prompts: examples whose label is the number of a prompt, and what tells prompts from others."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from datamodules.base import DiffusionData
from datamodules.examples import Examples
from lightning_guide.data import Batch, Prompts

__all__ = ["PromptedExamples", "prompts_checksum"]


class PromptedExamples(Examples):
    """Examples with the embedding (L, C) of a prompt in place of its number."""

    labeled = True

    def __init__(self, examples: Examples, prompts: Prompts) -> None:
        """Take `examples` whose labels number the `prompts`."""
        self.examples, self.prompts, self.in_memory = examples, prompts, examples.in_memory

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, number = self.examples[index]
        return x, self.prompts[torch.as_tensor(number).reshape(1)][0]

    def take(self, indices: Tensor) -> Batch:
        """Return elements `indices` as one batch."""
        batch = self.examples.take(indices)
        assert batch.condition is not None
        return batch._replace(condition=self.prompts[batch.condition])


def prompts_checksum(data: DiffusionData) -> str:
    """Return a checksum of the prompts of `data`: of their texts and the first embedding, or of all embeddings."""
    texts, prompts = data.prompt_texts, data.prompts()
    found = hashlib.sha256("\0".join(texts or []).encode())
    for row in range(len(prompts) if texts is None else 1):
        found.update(prompts[torch.tensor([row])].numpy().tobytes())
    return found.hexdigest()
