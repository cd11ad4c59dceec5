"""Class label of the clean estimate under a classifier of clean data.

The calibration is that of EluCD, Ma et al. 2024, https://arxiv.org/abs/2310.11311.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_guide.conditioning import LabelReader
from lightning_guide.objectives.energy import Energy
from lightning_guide.pretrained.networks import RunNetwork

__all__ = ["ClassLabel", "ClassLogProbability"]


class ClassLabel(Energy, LabelReader):
    """Classifier energy -joint f_y + log sum_c exp(marginal f_c) of logits f; cross-entropy for joint = marginal = 1.

    A marginal below the joint shifts the energy from the discriminative -ln p(y | x) toward the joint -ln p(x, y).
    """

    def __init__(
        self, classifier: nn.Module, label: int | None = None, *, joint: float = 1.0, marginal: float = 1.0
    ) -> None:
        """Choose classifier and label.

        Args:
            classifier: from clean x (B, *) to logits (B, K), with `num_classes` K (`RunNetwork`, `TimmNetwork`).
            label: y of all samples; None: the condition of each sample, where -1 marks unlabeled samples.
            joint: weight of the joint term.
            marginal: weight of the marginal term.
        """
        super().__init__()
        self.classifier, self.label, self.joint, self.marginal = classifier, label, joint, marginal

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """K if the label is the condition, else 0."""
        return int(self.classifier.num_classes) if self.label is None else 0  # type: ignore[arg-type]

    def check_condition(self, labels: Tensor) -> None:
        """Check the labels of samples, unless y is one for all.

        Raises:
            ValueError: as `forward`.
        """
        if self.label is None:
            check_readable(labels, self.num_classes)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the loss (B,); 0 for unlabeled samples.

        Raises:
            ValueError: if no sample has a label, or a class does not exist.
        """
        logits: Tensor = self.classifier(x)
        return label_loss(logits, self.label, condition, joint=self.joint, marginal=self.marginal)


def label_loss(
    logits: Tensor, label: int | None, condition: Tensor | None, *, joint: float = 1.0, marginal: float = 1.0
) -> Tensor:
    """Return -joint f_y + log sum_c exp(marginal f_c) (B,) of `logits` f (B, K); y is `label`, else `condition` (B,).

    Raises:
        ValueError: as `ClassLabel.forward`; labels on a device were checked before the first step.
    """
    given = condition if label is None else torch.tensor([label])
    if given is None or given.device.type == "cpu":
        check_readable(given, logits.shape[1])
    labels = condition if label is None else torch.full((len(logits),), label, device=logits.device)
    assert labels is not None
    chosen = logits.gather(1, labels.clamp(min=0)[:, None])[:, 0]
    loss = (marginal * logits).logsumexp(1) - joint * chosen
    return loss * (labels >= 0)


def check_readable(labels: Tensor | None, num_classes: int) -> None:
    """Check that a sample has a label, and each of `labels` (B,) is below `num_classes`; reads them on the host.

    Raises:
        ValueError: as `ClassLabel.forward`.
    """
    if labels is None or bool((labels < 0).all()):
        raise ValueError(
            "this energy needs a class, but no sample has a label: name one (label: 3), or sample with labels"
        )
    if bool((labels >= num_classes).any()):
        raise ValueError(f"class label {int(labels.max())} is out of range; the classifier has {num_classes} classes")


class ClassLogProbability(ClassLabel):
    """Class log-probability f(x) = ln p(label | x) under the classifier of a run of `ClassifierModule`."""

    def __init__(self, run: str, label: int) -> None:
        """Take the run folder of the classifier, read at first use, and the class `label`."""
        super().__init__(RunNetwork(run), label)
