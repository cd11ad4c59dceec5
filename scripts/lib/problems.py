"""Problems for training-free guidance of trained models: classes and measurements, and scores of samples."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules import Digits, Shards
from datamodules.base_images import ImageData
from datamodules.examples import Examples
from lightning_guide.data import Batch
from lightning_guide.denoiser import Denoiser, Trajectory
from lightning_guide.evaluation import ClassifierFeatures, FrechetDistance, KernelDistance
from lightning_guide.guidance import Unconditional
from lightning_guide.inference import is_diverged
from lightning_guide.noise import KarrasGrid
from lightning_guide.objectives import Blurred, ClassLabel, Compressed, Downsampled, Masked, Measurement
from lightning_guide.objectives.operators import Operator
from lightning_guide.pretrained import RunNetwork, Subspace
from lightning_guide.runs.models import finished_model
from lightning_guide.samplers import Euler
from lightning_guide.seeds import SampleSeeds
from scripts.lib.methods import Task

OPERATORS: dict[str, Operator] = {
    "super-resolution": Downsampled(2),
    "deblurring": Blurred(1.0),
    "inpainting": Masked(0.3),
    "compressive": Compressed(16),
}
NOISE = 0.05
TUNING_SEED = 1000
Scores = dict[str, float]


@dataclass(frozen=True)
class Setting:
    """A data set with its finished runs.

    `unlabeled` is the run of the guided model, `labeled` that of a model trained with labels (it may be the same).
    """

    data: ImageData
    runs: Path
    unlabeled: str
    labeled: str

    def model(self, name: str) -> Denoiser:
        """Newest average of a run."""
        return finished_model(self.runs / name, None, 0.05).eval()

    @cached_property
    def positive(self) -> Denoiser:
        """The guided model, without labels."""
        model = self.model(self.unlabeled)
        return Unconditional(model) if model.num_classes else model

    @cached_property
    def real(self) -> Batch:
        """The first 10,000 training images, in stored form."""
        return first(self.data.training(), 10_000)

    @cached_property
    def hidden(self) -> Batch:
        """The first 2,000 held-out images, in stored form."""
        return first(self.data.heldout(), 2000)

    @cached_property
    def guide(self) -> RunNetwork:
        """Guide network, trained on the first half of the training images."""
        return RunNetwork(str(self.runs / "guide"))

    @cached_property
    def judge(self) -> RunNetwork:
        """Judge network of another architecture, trained on the second half."""
        return RunNetwork(str(self.runs / "judge"))

    @cached_property
    def features(self) -> ClassifierFeatures:
        """Features of a third network, trained on all training images."""
        return ClassifierFeatures(str(self.runs / "classifier"))

    @cached_property
    def fd(self) -> FrechetDistance:
        """Frechet distance to the training images."""
        metric = FrechetDistance(self.features)
        metric.prepare([Batch(x) for x in self.real.x.split(1000)])
        return metric

    @cached_property
    def class_distances(self) -> list[KernelDistance]:
        """Kernel distances to the training images of each class, at most 1000."""
        found = []
        for label in range(self.data.num_classes):
            found.append(KernelDistance(self.features, max_reference=1000))
            found[-1].prepare([Batch(x) for x in self.real.x[self.real.condition == label].split(1000)])
        return found

    @cached_property
    def autoencoder(self) -> Subspace:
        """Projection on the first third of the principal components of the training images."""
        flat = self.data.encode(self.real.x[:5000]).flatten(1).double()
        directions = torch.linalg.svd(flat - flat.mean(0), full_matrices=False).Vh
        return Subspace(directions[: flat.shape[1] // 3].T, center=flat.mean(0), data_shape=self.data.data_shape)


@dataclass
class Problem:
    """A target, and the scores of samples for it; `name` is "label" or that of an operator."""

    name: str
    setting: Setting
    count: int

    @cached_property
    def operator(self) -> Operator | None:
        """Measurement operator; None for the problem of labels."""
        return OPERATORS.get(self.name)

    @cached_property
    def task(self) -> Task:
        """Energy and networks for the methods."""
        s = self.setting
        if self.operator is None:
            noisy = RunNetwork(str(s.runs / "noisy_classifier"))
            return Task(ClassLabel(s.guide), s.positive, s.autoencoder, s.guide, noisy)
        energy = Measurement(self.operator, s.data.encode(s.hidden.x), noise=NOISE)
        return Task(energy, s.positive, s.autoencoder)

    def seeds(self, seed: int) -> SampleSeeds:
        """Sample seeds of one seed: the first `count` for labels, a block of their own for measurements."""
        block = 0 if self.operator is None or seed == TUNING_SEED else seed + 1
        return SampleSeeds(seed, range(block * self.count, (block + 1) * self.count))

    def labels(self, seeds: SampleSeeds) -> Tensor:
        """Target labels, or those of the hidden images."""
        if self.operator is None:
            return torch.tensor(seeds.indices) % self.setting.data.num_classes
        assert self.setting.hidden.condition is not None
        return self.setting.hidden.condition[torch.tensor(seeds.indices) % len(self.setting.hidden.x)]

    def real(self, seed: int) -> Tensor:
        """Held-out images (count, C, H, W): the hidden ones, or as many of the target classes."""
        images, classes = self.setting.hidden.x, self.setting.hidden.condition
        seeds = self.seeds(seed)
        if self.operator is None:
            assert classes is not None
            scored = torch.rand(len(seeds), len(classes), generator=torch.Generator().manual_seed(seed))
            chosen = (scored + (classes == self.labels(seeds)[:, None])).argmax(1)
        else:
            chosen = torch.tensor(seeds.indices) % len(images)
        return self.setting.data.encode(images[chosen])

    def linear(self, seed: int) -> Tensor:
        """Best linear estimate m + C A^T (A C A^T + noise^2)^-1 (y - A m) of the hidden images.

        m and C are mean and covariance of the training images. Its error is the baseline for networks.
        """
        assert self.operator is not None and isinstance(self.task.energy, Measurement)
        flat = self.setting.data.encode(self.setting.real.x).flatten(1).double()
        m, C = flat.mean(0), flat.T.cov()
        shape = (-1, *self.setting.data.data_shape)
        A = self.operator(torch.eye(len(m), dtype=m.dtype).reshape(shape)).flatten(1).T  # (measured, pixels)
        x = self.real(seed)
        y = self.task.energy.observe(Trajectory(x=x, seeds=self.seeds(seed), sigma=0.0))[1].flatten(1).double()
        inverse = torch.linalg.pinv(A @ C @ A.T + NOISE**2 * torch.eye(len(A), dtype=m.dtype))
        return (m + (y - A @ m) @ (C @ A.T @ inverse).T).reshape(shape).to(x)

    def draw(self, guide: Denoiser, seed: int, steps: int) -> Tensor:
        """Draw samples (count, C, H, W)."""
        seeds = self.seeds(seed)
        sampler = Euler(KarrasGrid(steps, sigma_min=0.02, sigma_max=20.0))
        labels = self.labels(seeds) if self.operator is None else None
        return sampler.sample(guide, seeds=seeds, condition=labels).x

    def score(self, x: Tensor, seed: int) -> Scores:
        """Return all scores of samples."""
        s, seeds = self.setting, self.seeds(seed)
        labels, lost = self.labels(seeds), is_diverged(x, s.positive.sigma_data)
        stored = s.data.decode(x.nan_to_num(nan=0.0, posinf=1.0, neginf=-1.0))
        seen = s.data.encode(stored)
        found = {"lost": float(lost.double().mean()), "fd": distance(s.fd, stored)}
        for name, network in {"judge": s.judge, "guide": s.guide}.items():
            with torch.no_grad():
                logits = network(seen)
            found[f"{name} accuracy"] = float((logits.argmax(1) == labels).double().mean())
            found[f"{name} loss"] = float(F.cross_entropy(logits, labels))
        if self.operator is None:
            found["gap"] = found["judge loss"] - found["guide loss"]
            kids = [distance(each, stored[labels == label]) for label, each in enumerate(s.class_distances)]
            found["class distance"] = sum(kids) / len(kids)
        else:
            assert isinstance(self.task.energy, Measurement)
            truth, y = self.task.energy.observe(Trajectory(x=seen, seeds=seeds, sigma=0.0))
            rest = (y - self.operator(seen)).flatten(1).square().mean(1).sqrt() / NOISE
            error = (seen - truth).flatten(1).square().mean(1)
            found |= {"misfit": float(rest.mean()), "psnr": float((10 * (4 / error.clamp(min=1e-9)).log10()).mean())}
            found["error"] = float(error.mean())
        return found

    def cost(self, scores: Scores) -> float:
        """Return the score that tuning minimizes."""
        return scores["class distance" if self.operator is None else "error"]


def first(examples: Examples, count: int) -> Batch:
    """Return the first `count` examples, or all if there are fewer."""
    return examples.take(torch.arange(min(count, len(examples))))


def distance(metric: FrechetDistance | KernelDistance, stored: Tensor) -> float:
    """Return the distance of stored images to those that `metric` is prepared for."""
    metric.reset()
    metric.update(stored)
    (value,) = metric.compute().values()
    return float(value)


def digits(runs: Path) -> Setting:
    """The handwritten digits."""
    return Setting(Digits(), runs, unlabeled="unconditional", labeled="main")


def cifar8(runs: Path) -> Setting:
    """CIFAR-10 at 8x8; the guided model is the labeled one without its label, as in a tenth of its training."""
    shards = Shards("data/cifar10/train-*.tar", "data/cifar10/test-*.tar", num_classes=10, size=8, cache=False)
    return Setting(shards, runs, unlabeled="main", labeled="main")


SETTINGS = {"digits": digits, "cifar8": cifar8}
