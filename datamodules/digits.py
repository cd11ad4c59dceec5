"""Handwritten digits of scikit-learn: 1,797 images of 8x8, nothing to download."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import torch

from datamodules.base_images import ImageData
from datamodules.examples import TensorExamples

__all__ = ["Digits"]


class Digits(ImageData):
    """Handwritten digits, one channel, 8x8, ten classes; 1,437 for training and 360 held out.

    The split is fixed and stratified by class. Pixels 0..16 are stored as round(255 / 16 * pixel). The parts `first`
    (719) and `second` (718) of the training set are disjoint: a classifier that evaluates samples can be trained on
    other images than one that guides them.
    """

    data_shape = (1, 8, 8)
    num_classes = 10

    def __init__(
        self,
        *,
        batch_size: int = 256,
        part: Literal["all", "first", "second"] = "all",
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        """Select the `part` to train on; the held-out set is the same for all parts.

        Raises:
            ValueError: if `part` is unknown.
        """
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        if part not in ("all", "first", "second"):
            raise ValueError(f"part is {part!r}; expected 'all', 'first' or 'second'")
        self.part = part

    def training(self) -> TensorExamples:
        """Return the selected part of the training set.

        Raises:
            ValueError: if scikit-learn is not installed.
        """
        return self._parts[self.part]

    def heldout(self) -> TensorExamples:
        """Return the 360 held-out images.

        Raises:
            ValueError: if scikit-learn is not installed.
        """
        return self._parts["heldout"]

    @cached_property
    def _parts(self) -> dict[str, TensorExamples]:
        """All parts by name."""
        try:
            from sklearn.datasets import load_digits
            from sklearn.model_selection import train_test_split
        except ImportError:
            raise ValueError(
                "the digits come with scikit-learn, which is not installed; install it with "
                "`pip install lightning-guide[demo]`"
            ) from None
        digits = load_digits()
        x = torch.from_numpy(digits.images * (255 / 16)).round().to(torch.uint8)[:, None]  # (1797, 1, 8, 8)
        labels = torch.from_numpy(digits.target).to(torch.int64)

        def halves(indices: list[int], size: int) -> tuple[list[int], list[int]]:
            """Split into two disjoint, stratified parts, the second of `size`."""
            one, other = train_test_split(indices, test_size=size, stratify=labels[indices], random_state=0)
            return sorted(one), sorted(other)

        train, heldout = halves(list(range(len(x))), 360)
        first, second = halves(train, len(train) // 2)
        parts = {"all": train, "first": first, "second": second, "heldout": heldout}
        return {name: TensorExamples(x[indices], labels[indices]) for name, indices in parts.items()}
