"""Targets, replay weights, the bound on delta and the support metric, each against a formula written out here."""

from __future__ import annotations

import pytest
import torch

from lightning_guide.data import Batch
from lightning_guide.distributions.subspace import Direction, SubspaceGaussian, basis
from lightning_guide.evaluation.metrics.off_support import OffSupport
from lightning_guide.objectives import NegativeDistance, Quadratic
from lightning_guide.optimization import GainTarget, GeometricReplay, GoalTarget, LatestOnly, Replay, UniformReplay
from lightning_guide.optimization.contraction import overshoot
from lightning_guide.optimization.replay import mixture


def test_targets_match_their_formulas() -> None:
    along, value = torch.tensor([2.0, -1.0]), torch.tensor([5.0, 6.0])
    assert GainTarget(0.25).at(along, value).tolist() == [2.25, -0.75]
    assert GoalTarget(10.0).at(along, value).tolist() == [7.0, 3.0]  # f(z) + g^T (x - z) = 10
    for wrong in (lambda: GainTarget(0.0), lambda: GainTarget(float("nan")), lambda: GoalTarget(float("inf"))):
        with pytest.raises(ValueError, match="finite"):
            wrong()


def test_geometric_replay_is_a_running_mean_of_means() -> None:
    z, mean = [3.0, -1.0, 4.0, 2.0], 7.0  # 7: the mean of the pre-training data
    running = mean
    for k in range(len(z)):
        running = 0.7 * running + 0.3 * z[k]
        weights = GeometricReplay(0.3).weights(k + 1)
        expected = (1 - sum(weights)) * mean + sum(w * each for w, each in zip(weights, z, strict=False))
        assert expected == pytest.approx(running)
    assert sum(GeometricReplay(0.5, pretraining=0.2).weights(50)) == pytest.approx(0.8)
    assert UniformReplay(pretraining=0.4).weights(3) == pytest.approx([0.2] * 3)
    assert LatestOnly().weights(3) == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("replay", [GeometricReplay(0.4), UniformReplay(pretraining=0.25), LatestOnly()])
def test_the_shares_of_a_batch_are_the_weights(replay: Replay, generator: torch.Generator) -> None:
    rounds, size, batch = 3, 8, 200
    found = torch.arange(1, rounds + 1.0).reshape(rounds, 1, 1).expand(rounds, size, 2)
    labels = torch.arange(rounds * size).reshape(rounds, size)
    weights = replay.weights(rounds)
    plain = Batch(torch.zeros(batch, 2), torch.full((batch,), -1))
    mixed = mixture(plain, found, labels, weights, generator)
    counts = [int((mixed.x[:, 0] == i).sum()) for i in range(rounds + 1)]
    for count, share in zip(counts, [1 - sum(weights), *weights], strict=True):
        assert abs(count - share * batch) <= 1
    assert mixed.condition is not None
    rows = mixed.condition[mixed.x[:, 0] > 0]
    assert torch.equal(rows // size + 1, mixed.x[mixed.x[:, 0] > 0, 0].long())  # labels match their samples
    for i, weight in enumerate(weights):  # all samples of a round occur equally often
        each = torch.bincount(rows[rows // size == i] % size, minlength=size)
        assert weight == 0 or int(each.max() - each.min()) <= 1
    assert mixture(Batch(torch.zeros(4, 2)), found, None, [0.0] * 3, generator).x.eq(0).all()


def test_the_bound_is_the_largest_eigenvalue_of_the_written_out_matrix(generator: torch.Generator) -> None:
    prior = torch.randn(400, 6, generator=generator) @ torch.randn(6, 6, generator=generator)
    z = torch.randn(1, 6, generator=generator)
    objective = NegativeDistance(3.0)
    r = (z[0] - 3.0).double()
    length = r.norm()
    hessian = -0.5 / length * (torch.eye(6, dtype=torch.float64) - torch.outer(r, r) / length**2)
    g, sigma = -0.5 * r / length, prior.double().T.cov()
    for noise in (None, 0.3):
        moved = sigma
        if noise is not None:
            moved = sigma - 2 * torch.outer(sigma @ g, sigma @ g) / (noise**2 + 2 * g @ sigma @ g)
        expected = float(torch.linalg.eigvals(-moved @ hessian).real.max())
        assert overshoot(objective, z, prior, noise=noise) == pytest.approx(expected, rel=0.02)
    # one dimension of interest: delta L p < s^2 + 2 g^2 p
    exact = SubspaceGaussian()
    prior = exact.sample(4000, generator)[0]
    theta = Direction().vector.float()
    p, slope = float((prior @ theta).var()), 2 * 3.0
    expected = 2 * p / (1 + 2 * slope**2 * p / 0.01)
    found = overshoot(Quadratic(Direction()), torch.zeros(1, 64), prior, noise=0.1)
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("delta", "oscillates"), [(0.45, False), (0.7, True)])
def test_the_bound_predicts_oscillation_of_the_exact_map(delta: float, oscillates: bool) -> None:
    # the map of algorithm 1 on N(0, P) written out, for f2 with b off the support; its bound is 0.55 there
    a, s2 = basis(64, 16), 0.01
    b = torch.full((64,), 4.0, dtype=torch.float64)
    z = 0.01 * a @ torch.linspace(-1, 1, 16, dtype=torch.float64)
    steps = []
    for _ in range(3000):
        g = 0.5 * (b - z) / (b - z).norm()
        moved = a @ (a.T @ g)
        new = moved * (delta + g @ z) / (s2 + g @ moved)
        steps.append(float((new - z).norm()))
        z = new
    assert (steps[-1] > 1e-3) == oscillates
    lengths = (z - b).norm()
    bound = s2 * 2 * float(lengths)  # transversal curvature 1 / (2 |z - b|), independent of g
    assert (delta > bound) == oscillates


def test_off_support_is_the_distance_from_the_span_of_the_data(generator: torch.Generator) -> None:
    exact = SubspaceGaussian(10, 3, seed=5)
    metric = OffSupport(3)
    metric.prepare([Batch(exact.sample(200, generator)[0]) for _ in range(2)])
    on = exact.sample(50, generator)[0]
    away = torch.randn(50, 10, generator=generator)
    away = away - (away.double() @ exact.basis @ exact.basis.T).float()
    metric.update((on + away)[:20])
    metric.update((on + away)[20:])
    values = {name: float(value) for name, value in metric.compute().items()}
    assert values["off_norm"] == pytest.approx(float(away.norm(dim=1).mean()), rel=1e-4)
    assert values["on_norm"] == pytest.approx(float(on.norm(dim=1).mean()), rel=1e-4)
    assert values["off_ratio"] == pytest.approx(float((away.norm(dim=1) / on.norm(dim=1)).mean()), rel=1e-3)
    with pytest.raises(ValueError, match="samples have 4 numbers each, the real data 10"):
        metric.update(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="a support of dimension 30 cannot be found in 200 examples of 10 numbers"):
        OffSupport(30).prepare([Batch(torch.zeros(200, 10))])
    with pytest.raises(ValueError, match="is not prepared"):
        OffSupport(2).update(torch.zeros(2, 4))


def test_subspace_data_and_direction_have_their_geometry(generator: torch.Generator) -> None:
    exact = SubspaceGaussian(64, 16, seed=3)
    a = exact.basis
    torch.testing.assert_close(a.T @ a, torch.eye(16, dtype=torch.float64))
    x, u = exact.sample(500, generator)
    torch.testing.assert_close(x.double() @ a, u, rtol=1e-5, atol=1e-5)
    theta = Direction(64, 16, seed=3).vector
    on = a @ (a.T @ theta)
    assert float(theta.norm()) == pytest.approx(1) and float((theta - on).norm() / on.norm()) == pytest.approx(9)
    assert float(on.norm()) == pytest.approx(0.1104, abs=1e-4)
    inside = Direction(64, 16, off_ratio=0.0, seed=3).vector
    torch.testing.assert_close(a @ (a.T @ inside), inside)
    for wrong in (lambda: SubspaceGaussian(4, 5), lambda: Direction(4, 4, off_ratio=1.0)):
        with pytest.raises(ValueError, match="needs"):
            wrong()
