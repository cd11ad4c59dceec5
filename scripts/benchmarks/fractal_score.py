"""Exact scores of the 2D fractal: the direct formulation against that of this library, side by side in one run.

Direct: each point against each of the 1016 Gaussians by einsum, and the network's score by automatic
differentiation, so that training differentiates twice. Here: `FractalTree`, which sums over lines, and
`LogDensityMLP`, whose gradient is written out. Prints the times of the score and of one whole training iteration
(data, noise, target, network, backward pass, Adam, forced weight normalization) and how far the results agree.

    python -m scripts.benchmarks.fractal_score --threads 2
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from lightning_guide.distributions.fractal import FractalTree
from lightning_guide.networks.log_density_mlp import LogDensityMLP
from lightning_guide.noise import LogNormal
from lightning_guide.training.losses import ScoreMatchingLoss


class DirectMixture(nn.Module):
    """A mixture of K Gaussians, component by component."""

    def __init__(self, tree: FractalTree) -> None:
        """Copy the Gaussians of `tree` in float32."""
        super().__init__()
        mixture = tree.as_mixture()
        self.means, self.log_weights = mixture.means.float(), mixture.log_weights.float()
        self.eigenvalues, self.axes = mixture.eigenvalues.float(), mixture.eigenvectors.float()

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The score `(B, 2)` at `x` (B, 2) and `sigma` (B,)."""
        variance = self.eigenvalues + sigma[:, None, None].square()  # (B, K, 2)
        precision = torch.einsum("kie,bke,kje->bkij", self.axes, 1 / variance, self.axes)
        away = x[:, None] - self.means
        pull = torch.einsum("bkij,bkj->bki", precision, away)
        quadratic = torch.einsum("bki,bki->bk", away, pull)
        log_joint = self.log_weights - 0.5 * quadratic - 0.5 * variance.log().sum(-1)
        return -torch.einsum("bk,bki->bi", log_joint.softmax(1), pull)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """x + sigma^2 score, `(B, 2)`."""
        return x + sigma[:, None] ** 2 * self.score(x, sigma)


class DirectNetwork(LogDensityMLP):
    """The same network, its score by automatic differentiation of the log-density."""

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        """x + sigma^2 score, `(B, 2)`."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (score,) = torch.autograd.grad(self.log_density(x, sigma).sum(), x, create_graph=True)
        return x + sigma[:, None] ** 2 * score


class Training:
    """Training of a network on exact scores, one iteration per call."""

    def __init__(self, network: LogDensityMLP, exact: nn.Module, tree: FractalTree, batch: int) -> None:
        """Take targets from `exact` and data from `tree`, `batch` points at a time."""
        self.network, self.tree, self.batch = network, tree, batch
        self.loss = ScoreMatchingLoss(LogNormal(-2.3, 1.5), exact=exact)
        self.optimizer = torch.optim.Adam(network.parameters(), lr=0.01, betas=(0.9, 0.99))
        self.generator = torch.Generator().manual_seed(0)
        self.losses: list[float] = []

    def __call__(self) -> None:
        """Run one iteration."""
        clean, _ = self.tree.sample(self.batch, self.generator)
        loss = self.loss(self.network, clean, None, self.generator).objective.mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.network.constrain()
        self.losses.append(float(loss.detach()))


def milliseconds(calls: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median time of each call; calls alternate under the same load, the first round is a warm-up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            times[name].append(1000 * (time.perf_counter() - begin))
    return {name: torch.tensor(taken[1:]).median().item() for name, taken in times.items()}


def report(title: str, times: Mapping[str, float]) -> None:
    """Print one line for each call, with the ratio to the last one."""
    print(title)
    *_, best = times.values()
    for name, taken in times.items():
        print(f"  {name:<44}{taken:9.1f} ms {taken / best:8.1f} x")


def main() -> None:
    """Run both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4096, help="points in a batch")
    parser.add_argument("--width", type=int, default=64, help="width of the network")
    parser.add_argument("--repeats", type=int, default=10, help="timed calls of each")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    tree, generator = FractalTree("A"), torch.Generator().manual_seed(0)
    direct, mixture = DirectMixture(tree), tree.as_mixture()
    sigma = LogNormal(-2.3, 1.5).sample(options.batch, generator)
    x = tree.sample(options.batch, generator)[0]
    x = x + sigma[:, None] * torch.randn(x.shape, generator=generator)

    with torch.no_grad():
        times = milliseconds(
            {
                "direct (einsum per component)": lambda: direct.score(x, sigma),
                "GaussianMixture (generic, no lines)": lambda: mixture.score(x, sigma),
                "FractalTree": lambda: tree.score(x, sigma),
            },
            options.repeats,
        )
        report(f"score of {options.batch} points, {tree.components} Gaussians, {options.threads} threads", times)
        exact = mixture.score(x.double(), sigma.double())
        for name, score in (("direct", direct.score(x, sigma)), ("FractalTree", tree.score(x, sigma))):
            error = (score - exact).norm() / exact.norm()
            print(f"  relative error of {name} against float64: {error:.1e}")

    runs: dict[str, Training] = {}
    for name, kind, target in (
        ("direct (einsum, double backward)", DirectNetwork, direct),
        ("exact scores (FractalTree, LogDensityMLP)", LogDensityMLP, tree),
    ):
        torch.manual_seed(0)
        runs[name] = Training(kind(width=options.width), target, tree, options.batch)
    report(f"training iteration, width {options.width}, exact scores", milliseconds(runs, options.repeats))
    ours, theirs = (torch.tensor(run.losses) for run in runs.values())
    print(f"  largest relative difference of the losses of the two runs: {((ours - theirs) / ours).abs().max():.1e}")


if __name__ == "__main__":
    main()
