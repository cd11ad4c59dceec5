"""Strips of rounds: one row for each round, one column for each sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from callbacks import RoundStrips
from lightning_guide.denoiser import Denoiser
from lightning_guide.evaluation.evaluation import Evaluation
from lightning_guide.guidance import LookAhead, Tilt
from lightning_guide.modules.gradient_optimization import GradientOptimization
from lightning_guide.objectives import TorchFunction
from tests.runs import SAMPLER, TinyImages, tiny_trainer


class Gray(Denoiser):
    """Denoiser of images around gray: N(0, 0.2^2 I)."""

    data_shape, num_classes, sigma_data = (1, 4, 4), 0, 0.2

    def forward(self, x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        return x * 0.04 / (0.04 + sigma**2)


def test_rows_are_rounds_and_get_brighter(tmp_path: Path) -> None:
    sampling = Evaluation(guidance=LookAhead(Tilt(80.0)), sampler=SAMPLER, num_samples=6, batch_size=2)
    brighter = TorchFunction("torch.mean", {"dim": [1, 2, 3]})
    module = GradientOptimization(Gray(), brighter, sampling, num_rounds=5, at="sample", redraw=False)
    trainer = tiny_trainer(tmp_path, RoundStrips(columns=3, every=2), limit_test_batches=1.0)
    trainer.test(module, datamodule=TinyImages(shape=(1, 4, 4)), verbose=False)
    image = Image.open(tmp_path / "report/rounds.png")
    side = 64 + 2  # enlarged, with a border of 2
    assert image.size == (3 * side + 2, 3 * side + 2)  # rounds 0, 2 and 4
    rows = torch.from_numpy(np.array(image.convert("L"))).float()
    means = [float(rows[2 + i * side : 2 + i * side + 64, 2 : 2 + 64].mean()) for i in range(3)]
    assert means[1] > means[0] + 10 and abs(means[2] - means[1]) < 1  # the tilt, then the same tilt with the same noise
    assert [record["objective"] for record in module.rounds.history[1:]] == [module.rounds.history[1]["objective"]] * 4
