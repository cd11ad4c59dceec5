"""The class that a classifier of clean data sees in the clean estimate.

Ma et al. 2024 (EluCD), https://arxiv.org/abs/2310.11311, for the calibration.

The log-probability of one class under a classifier trained here: a reward for pictures that look like that class.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_guide.objectives.energy import Energy
from lightning_guide.objectives.objective import Objective
from lightning_guide.pretrained.networks import RunNetwork

__all__ = ["ClassLabel", "ClassLogProbability"]


class ClassLabel(Energy):
    """-joint f_y + log sum_c exp(marginal f_c), with logits f: for joint = marginal = 1 the cross-entropy.

    A marginal below the joint leans toward ln p(x, y), the joint density, and away from the discriminative answer.
    """

    def __init__(
        self, classifier: nn.Module, label: int | None = None, *, joint: float = 1.0, marginal: float = 1.0
    ) -> None:
        """`classifier` maps clean x (B, *) to logits (B, K) and says K in `num_classes` (`RunNetwork`, `TimmNetwork`).

        `label` y of all samples; None: the condition of each sample, where -1 is no wish.
        """
        super().__init__()
        self.classifier, self.label, self.joint, self.marginal = classifier, label, joint, marginal

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """K if the label is the condition, else 0."""
        return int(self.classifier.num_classes) if self.label is None else 0  # type: ignore[arg-type]

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """The loss (B,); 0 for a sample without a label.

        Raises:
            ValueError: if no sample has a label, or there is no such class.
        """
        logits: Tensor = self.classifier(x)
        return label_loss(logits, self.label, condition, joint=self.joint, marginal=self.marginal)


def label_loss(
    logits: Tensor, label: int | None, condition: Tensor | None, *, joint: float = 1.0, marginal: float = 1.0
) -> Tensor:
    """-joint f_y + log sum_c exp(marginal f_c) (B,) of `logits` f (B, K); y is `label` or else the `condition` (B,).

    Raises:
        ValueError: as `ClassLabel.forward`.
    """
    labels = condition if label is None else torch.full((len(logits),), label, device=logits.device)
    if labels is None or bool((labels < 0).all()):
        raise ValueError("a class is wanted, but no sample has a label: name one (label: 3), or sample with labels")
    if bool((labels >= logits.shape[1]).any()):
        raise ValueError(f"class label {int(labels.max())} is out of range; the guide knows {logits.shape[1]} classes")
    wanted = logits.gather(1, labels.clamp(min=0)[:, None])[:, 0]
    loss = (marginal * logits).logsumexp(1) - joint * wanted
    return loss * (labels >= 0)


class ClassLogProbability(Objective):
    """ln p(label | x) by the classifier that a run of `modules.classifier.ClassifierModule` has trained."""

    def __init__(self, run: str, label: int) -> None:
        """`run` is the folder of the classifier's run, read at first use; `label` one of its classes."""
        super().__init__()
        self.classifier, self.label = RunNetwork(run), label

    def forward(self, x: Tensor) -> Tensor:
        """ln p (B,) of pictures `x` (B, C, H, W) in [-1, 1].

        Raises:
            ValueError: if there is no such classifier or class, or the pictures have another shape.
        """
        if not 0 <= self.label < self.classifier.num_classes:
            known = self.classifier.num_classes
            raise ValueError(f"label {self.label} is out of range: the classifier knows {known} classes")
        logits: Tensor = self.classifier(x)
        return logits.log_softmax(1)[:, self.label]
