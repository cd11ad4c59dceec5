"""Scores of the 2D fractal's model at any point of a search space, drawn in one process."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser
from lightning_guide.distributions.fractal import FractalTree
from lightning_guide.evaluation.evaluation import Evaluation
from lightning_guide.evaluation.metrics.exact_density import (
    QUANTILES,
    TRUE_SAMPLES,
    sliced_quantiles,
    sliced_wasserstein,
)
from lightning_guide.guidance import Autoguidance
from lightning_guide.noise import KarrasGrid
from lightning_guide.runs.models import open_snapshots
from lightning_guide.samplers import DPMSolver2M
from lightning_guide.search.scores import ScoreBlock, Scorer, Scores, leave_one_out
from lightning_guide.search.space import UNGUIDED, Point, Space
from lightning_guide.seeds import SampleSeeds

METRIC = "sliced_wasserstein"


class Points(Scorer):
    """Points of the fractal's model at any point of the space, drawn part by part and kept in memory."""

    def __init__(self, run: str, space: Space, size: int, *, part: int) -> None:
        """Draw `part` points at a time, a multiple of the `size` of a block."""
        self.space, self.size, self.at_once = space, size, part
        self.store = open_snapshots(run)
        self.sampler = DPMSolver2M(KarrasGrid(16, sigma_min=0.002, sigma_max=5.0))
        tree = FractalTree("A")
        self.start = Evaluation(start=tree)
        self.quantiles = sliced_quantiles(tree.sample(TRUE_SAMPLES, torch.Generator().manual_seed(0))[0], QUANTILES)
        self.parts: dict[tuple[Point, int, int], Tensor] = {}
        self.models: dict[tuple[int, float], Denoiser] = {}

    def model(self, images: int, sigma_rel: float) -> Denoiser:
        """An average of the run."""
        if (images, sigma_rel) not in self.models:
            self.models[images, sigma_rel] = self.store.guider(images=images, sigma_rel=sigma_rel)
        return self.models[images, sigma_rel]

    def denoiser(self, point: Point) -> Denoiser:
        """The guided model at a point; without guidance, the average of width 0.05."""
        if point == UNGUIDED:
            return self.model(2097152, 0.05)
        values = self.space.values(point)
        guider, main = (values["age"], values["sigma_rel"]), (2097152, values["main_sigma_rel"])
        return Autoguidance(self.model(*guider), values["weight"], positive=self.model(*main))

    def part(self, point: Point, seed: int, number: int) -> Tensor:
        """Points from number * part on, of a seed."""
        if (point, seed, number) not in self.parts:
            seeds = SampleSeeds(seed, range(number * self.at_once, (number + 1) * self.at_once))
            drawn = self.sampler.sample(
                self.denoiser(point), seeds=seeds, start=lambda noise: self.start.initial(noise, seeds)
            )
            self.parts[point, seed, number] = drawn.x
        return self.parts[point, seed, number]

    def drawn(self, point: Point) -> set[ScoreBlock]:
        """Empty: `part` keeps the record."""
        return set()

    def draw(self, point: Point, blocks: Sequence[ScoreBlock]) -> None:
        """Do nothing: `part` draws on demand."""

    def scores(self, point: Point, blocks: Sequence[ScoreBlock], *, interval: bool = True) -> Scores:
        """The sliced Wasserstein distance."""
        per_part = self.at_once // self.size
        rows = [
            self.part(point, seed, number // per_part)[number % per_part * self.size :][: self.size]
            for seed, number in blocks
        ]
        return Scores(self._score(rows), [self._score(union) for union in leave_one_out(rows)] if interval else [])

    def _score(self, rows: Sequence[Tensor]) -> dict[str, float]:
        return {METRIC: float(sliced_wasserstein(torch.cat(list(rows)), self.quantiles))}
