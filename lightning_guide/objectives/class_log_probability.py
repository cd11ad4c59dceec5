"""The log-probability of one class under a classifier trained here: a reward for pictures that look like that class."""

from __future__ import annotations

from torch import Tensor

from lightning_guide.guidance.energy.energies.networks import RunNetwork
from lightning_guide.objectives.objective import Objective

__all__ = ["ClassLogProbability"]


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
