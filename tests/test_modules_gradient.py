"""Algorithms 1 and 2 as Lightning runs: optima in closed form, resuming after a kill, errors."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks import PostHocEMA, RunCheckpoint
from datamodules.points import SubspacePoints
from lightning_guide.denoiser import Denoiser
from lightning_guide.distributions.subspace import Direction, SubspaceGaussian
from lightning_guide.evaluation.evaluation import Evaluation
from lightning_guide.evaluation.metrics.off_support import OffSupport
from lightning_guide.guidance.gradient import LookAhead, NaiveGradient, Strength, Tilt
from lightning_guide.modules.gradient_fine_tuning import GradientFineTuning
from lightning_guide.modules.gradient_optimization import GradientOptimization
from lightning_guide.noise import KarrasGrid
from lightning_guide.objectives import Decoded, NegativeDistance, Objective, Quadratic
from lightning_guide.optimization import GainTarget, GeometricReplay, MeanRefit, Shifted
from lightning_guide.runs.checkpoints import check_checkpoint, newest_checkpoint
from lightning_guide.samplers import DPMSolver2M, Euler
from lightning_guide.training.learning_rate import InverseSqrtRate
from tests.runs import assert_same, checkpoint, tiny_trainer

# The mean of the samples is exact under any grid that starts far above the data; few steps suffice.
SAMPLER = Euler(KarrasGrid(5, sigma_min=0.02, sigma_max=1000.0))
P = 1 / 82  # |A^T theta|^2 of theta_2
NOISE = 0.1


def data(**options: Any) -> SubspacePoints:
    return SubspacePoints(**{"heldout_size": 64, "training_size": 512, "batch_size": 64} | options)


def sampling(strength: Strength | None = None, samples: int = 32, **options: Any) -> Evaluation:
    metrics = {"support": OffSupport(16)}
    guidance = options.pop("guidance", None) or LookAhead(strength)
    chosen = {"sampler": SAMPLER, "metrics": metrics} | options
    return Evaluation(guidance=guidance, num_samples=samples, **chosen)


def optimize(
    folder: Path | str, objective: Objective, *, rounds: int, strength: Strength | None = None, **options: Any
) -> GradientOptimization:
    chosen = options.pop("sampling", None) or sampling(strength, batch_size=20)
    module = GradientOptimization(SubspaceGaussian(), objective, chosen, num_rounds=rounds, **options)
    trainer = tiny_trainer(folder, limit_test_batches=1.0)
    trainer.test(module, datamodule=data(), verbose=False)
    return module


def history_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "rounds/history.jsonl").read_text().splitlines()]


def u_of(record: dict[str, float]) -> float:
    """Return u = theta^T z of the batch mean z, which stays below the peak here: f = 10 - (u - 3)^2."""
    return float(3 - (10 - record["objective_of_mean"]) ** 0.5)


# --- algorithm 1 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "delta", [0.2, *(pytest.param(each, marks=pytest.mark.slow) for each in (0.05, 0.1, 0.4, 0.9))]
)
def test_gain_target_converges_to_its_fixed_point(delta: float, tmp_path: Path) -> None:
    module = optimize(tmp_path, Quadratic(Direction()), rounds=400, target=GainTarget(delta), sampling=sampling())
    r = 2 * delta * P / NOISE**2
    last = module.rounds.history[-100:]
    assert sum(map(u_of, last)) / 100 == pytest.approx(3 * r / (1 + r), abs=0.05)
    if delta == 0.2:
        assert sum(record["objective_of_mean"] for record in last) / 100 == pytest.approx(5.94, abs=0.05)
    assert max(record["off_ratio"] for record in module.rounds.history) < 1e-5
    history = history_of(tmp_path)
    assert len(history) == 400 and history[-1]["round"] == 399
    assert all(record["nfe"] == 5 for record in history) and history[-1]["evaluations"] == 400 * 32 * 5


@pytest.mark.parametrize("eta", [5.0, 20.0])
def test_a_constant_eta_converges_to_the_regularized_optimum(eta: float, tmp_path: Path) -> None:
    # argmax over z in span(A) of 10 - (theta^T z - 3)^2 - |z|^2 / (2 eta): z = c A A^T theta, u = c p
    expected = 3 * 2 * eta * P / (1 + 2 * eta * P)
    module = optimize(tmp_path, Quadratic(Direction()), rounds=40, strength=Tilt(eta))
    assert sum(map(u_of, module.rounds.history[-20:])) / 20 == pytest.approx(expected, abs=0.05)


def test_a_constant_eta_finds_the_regularized_optimum_of_a_distance(tmp_path: Path) -> None:
    # z = eta P grad f(z) with f = 5 - |z - b| / 2: solved here by plain fixed-point iteration
    a = SubspaceGaussian().basis
    b = torch.full((64,), 4.0, dtype=torch.float64)
    z = torch.zeros(64, dtype=torch.float64)
    for _ in range(200):
        z = 20.0 * a @ (a.T @ (b - z)) / (2 * (b - z).norm())
    best = float(5 - (z - b).norm() / 2)
    module = optimize(tmp_path, NegativeDistance(), rounds=40, strength=Tilt(20.0))
    found = sum(record["objective_of_mean"] for record in module.rounds.history[-20:]) / 20
    assert found == pytest.approx(best, abs=0.05) and best > module.rounds.history[0]["objective_of_mean"] + 1


def test_gradients_at_each_sample(tmp_path: Path) -> None:
    module = optimize(tmp_path, Quadratic(Direction()), rounds=60, at="sample", target=GainTarget(0.2))
    assert module.rounds.feedback.gradient is not None and module.rounds.feedback.gradient.shape == (32, 64)
    last = [record["objective"] for record in module.rounds.history[-10:]]
    assert sum(last) / 10 == pytest.approx(5.5, abs=0.4)  # still rising; 0.86 at the start
    assert module.rounds.history[0]["objective"] < 2


@pytest.mark.filterwarnings("ignore:Total length of")  # no round is left
def test_a_killed_optimization_resumes_with_the_same_samples(tmp_path: Path) -> None:
    whole = optimize(tmp_path / "whole", Quadratic(Direction()), rounds=6)

    class Killed(Quadratic):
        # one call at the start; the bound on delta takes 31, after rounds 1, 2 and 4; killed in the fifth
        left = 1 + 3 * (3 + 31) + 3 + 2

        def value(self, x: torch.Tensor) -> torch.Tensor:
            Killed.left -= 1
            if not Killed.left:
                raise KeyboardInterrupt
            return super().value(x)

    Killed.__name__ = "Quadratic"
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        optimize(tmp_path / "parted", Killed(Direction()), rounds=6)
    assert len(history_of(tmp_path / "parted")) == 4
    parted = optimize(tmp_path / "parted", Quadratic(Direction()), rounds=6)
    for one, other in zip(whole.rounds.history, parted.rounds.history, strict=True):
        assert_same(*({key: value for key, value in each.items() if key != "seconds"} for each in (one, other)))
    assert_same(whole.rounds.feedback.gradient, parted.rounds.feedback.gradient)
    done = optimize(tmp_path / "parted", Quadratic(Direction()), rounds=6)  # all rounds are drawn already
    assert done.rounds.round == 6
    with pytest.raises(ValueError, match="made with other settings: num_samples was 32 and is now 8"):
        optimize(tmp_path / "parted", Quadratic(Direction()), rounds=6, sampling=sampling(samples=8))


@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda data: data.replace(b"gradient", b"gradiens")])
def test_a_damaged_state_is_named(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    optimize(tmp_path, Quadratic(Direction()), rounds=1)
    state = tmp_path / "rounds/state.ckpt"
    state.write_bytes(damage(state.read_bytes()))
    with pytest.raises(ValueError, match=r"the state of the rounds .*state.ckpt is damaged \(.*\); put back the whole"):
        optimize(tmp_path, Quadratic(Direction()), rounds=2)


@pytest.mark.filterwarnings("ignore:Total length of")  # no round is left
@pytest.mark.parametrize(
    ("message", "options"),
    [
        (r"target\.delta was 0\.2 and is now 0\.9", {"target": GainTarget(0.9)}),
        (
            r"objective\.theta\.off_ratio was 9\.0 and is now 0\.0",
            {"objective": Quadratic(Direction(off_ratio=0.0))},
        ),
        (r"objective\.peak was 3\.0 and is now 4\.0", {"objective": Quadratic(Direction(), peak=4.0)}),
        ("guidance was 'LookAhead' and is now 'NaiveGradient'", {"sampling": sampling(guidance=NaiveGradient())}),
        (r"guidance\.strength was None and is now 'Tilt'", {"strength": Tilt(5.0)}),
        (r"sampler\.grid\.num_steps was 5", {"sampling": sampling(sampler=Euler(KarrasGrid(6)))}),
        (r"floor was 0\.0 and is now 0\.1", {"floor": 0.1}),
        ("redraw was True and is now False", {"redraw": False}),
    ],
)
def test_rounds_of_another_config_are_not_continued(message: str, options: dict[str, Any], tmp_path: Path) -> None:
    optimize(tmp_path, Quadratic(Direction()), rounds=1)
    before = (tmp_path / "rounds/history.jsonl").read_text()
    with pytest.raises(ValueError, match="rounds was made with other settings: " + message):
        optimize(tmp_path, **{"objective": Quadratic(Direction()), "rounds": 2} | options)
    assert (tmp_path / "rounds/history.jsonl").read_text() == before
    # settings without effect on the samples may change
    module = optimize(tmp_path, Quadratic(Direction()), rounds=2, sampling=sampling(batch_size=7, metrics={}))
    assert module.rounds.round == 2
    with pytest.warns(UserWarning, match="2 rounds exist already, more than num_rounds = 1"):
        optimize(tmp_path, Quadratic(Direction()), rounds=1)
    with pytest.raises(ValueError, match="holds rounds of GradientOptimization; expected another"):
        fine_tune(tmp_path, Shifted(SubspaceGaussian()), steps=1)


def test_a_vanishing_gradient_is_reported_and_the_guidance_kept(tmp_path: Path) -> None:
    class Plateau(Objective):
        """u up to 1, constant above."""

        theta = Direction(off_ratio=0.0).vector.float()

        def value(self, x: torch.Tensor) -> torch.Tensor:
            return (x @ self.theta).clamp(max=1.0)

    with pytest.warns(UserWarning, match=r"the gradient of the objective vanishes at \d+ of 32 points"):
        module = optimize(tmp_path, Plateau(), rounds=25, at="sample", target=GainTarget(0.2))
    vanished = [record["vanished"] for record in module.rounds.history]
    assert vanished[-1] > 25  # most samples have reached the plateau and stay on it
    assert module.rounds.history[-1]["objective"] > 0.95
    assert float(module.rounds.feedback.gradient.flatten(1).norm(dim=1).min()) > 0  # type: ignore[union-attr]


def test_a_delta_above_the_contraction_bound_warns(tmp_path: Path) -> None:
    # here -H = (I - r r^T) / (2 |z - b|) with |z - b| = 32, Sigma = P: contraction needs delta < 0.01 * 64 = 0.64, and
    # the covariance of 256 samples has a largest eigenvalue of about 1.5
    fine = DPMSolver2M(KarrasGrid(12, sigma_min=0.02, sigma_max=1000.0, rho=20.0))  # samples with the right spread
    chosen: dict[str, Any] = {"rounds": 2, "sampling": sampling(samples=256, sampler=fine, batch_size=256)}
    with pytest.warns(UserWarning, match=r"delta = 1 is too large .* expected less than 0\.[3-6]"):
        module = optimize(tmp_path / "wide", NegativeDistance(), target=GainTarget(1.0), **chosen)
    assert 1 / 0.64 < module.rounds.history[0]["contraction"] < 1.8 / 0.64
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*too large for rounds to contract.*")
        module = optimize(tmp_path / "narrow", NegativeDistance(), target=GainTarget(0.2), **chosen)
    assert module.rounds.history[0]["contraction"] < 0.6


class Wrong(Objective):
    """Returns an invalid objective of one `kind`."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def value(self, x: torch.Tensor) -> torch.Tensor:
        return {"vector": x, "one": x.sum(), "nan": x.sum(1) * torch.nan, "constant": torch.ones(len(x))}[self.kind]


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (Wrong("vector"), r"objective Wrong returned a tensor of shape \(2, 64\) for 2 samples"),
        (Wrong("one"), r"returned a tensor of shape \(\) for 2 samples; expected one number each"),
        (Wrong("nan"), "objective Wrong is nan for 20 of 20 samples, first for number 0; expected finite numbers"),
        (Wrong("constant"), "objective Wrong has no gradient"),
        (Quadratic([1.0, 0.0]), r"Quadratic takes x of shape \(2,\), the samples have shape \(64,\)"),
    ],
)
def test_invalid_objectives_are_refused(objective: Objective, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        optimize(tmp_path, objective, rounds=2)


def test_other_invalid_arguments_are_refused(tmp_path: Path) -> None:
    theta = Direction()
    with pytest.raises(ValueError, match="need a gradient guidance .* got a Main"):
        optimize(tmp_path, Quadratic(theta), rounds=2, sampling=Evaluation())
    with pytest.raises(ValueError, match=r"data has shape \(64,\), the network expects \(8,\)"):
        module = GradientOptimization(SubspaceGaussian(8, 2), Quadratic(theta), sampling())
        tiny_trainer(tmp_path).test(module, datamodule=data(), verbose=False)
    with pytest.raises(ValueError, match="num_rounds >= 1"):
        GradientOptimization(SubspaceGaussian(), Quadratic(theta), sampling(), num_rounds=0)


# --- algorithm 2 ---------------------------------------------------------------------------------------


def fine_tune(folder: Path | str, denoiser: Denoiser, *, steps: int, every: int = 1000, **options: Any) -> Any:
    chosen: dict[str, Any] = {
        "loss": MeanRefit(),
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=1.0),
        "learning_rate": InverseSqrtRate(1.0),
        "objective": Quadratic(Direction()),
        "sampling": sampling(),
        "target": GainTarget(0.2),
    }
    callbacks = options.pop("callbacks", [])
    module = GradientFineTuning(denoiser, **chosen | options)
    trainer = tiny_trainer(folder, RunCheckpoint(every), *callbacks, steps=steps)
    trainer.fit(module, datamodule=data(), ckpt_path=newest_checkpoint(folder), weights_only=True)
    return module


def test_mean_refit_reaches_the_global_optimum_on_the_support(tmp_path: Path) -> None:
    module = fine_tune(tmp_path, Shifted(SubspaceGaussian()), steps=101, replay=GeometricReplay(0.5))
    record = module.rounds.history[100]
    assert record["round"] == 100 and record["objective_of_mean"] >= 9.9
    assert max(each["off_ratio"] for each in module.rounds.history) < 1e-5
    # the mean has moved as far as the support allows: |m| = 3 / |A^T theta|
    assert float(module.denoiser.offset.detach().norm()) == pytest.approx(3 * 82**0.5, rel=0.05)


def test_fine_tuning_killed_within_a_round_resumes_bitwise(tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps_per_round": 3, "average": 0.1}

    def run(folder: Path, steps: int) -> Any:
        averages = PostHocEMA(10**6, sigma_rels=[0.1])
        return fine_tune(folder, Shifted(SubspaceGaussian()), steps=steps, callbacks=[averages], **options)

    whole = run(tmp_path / "whole", 10)
    for steps in (4, 6, 10):  # in the middle of a round, and where a round is due
        parted = run(tmp_path / "parted", steps)
    assert whole.rounds.round == parted.rounds.round == 4
    one, other = (history_of(tmp_path / name) for name in ("whole", "parted"))
    assert len(other) == 4 and [each["objective"] for each in one] == [each["objective"] for each in other]
    before, after = (checkpoint(tmp_path / name) for name in ("whole", "parted"))
    assert_same(before["rounds"], after["rounds"])
    assert_same(before["state_dict"], after["state_dict"])
    assert len(before["rounds"]["found"]) == 4


def test_an_objective_with_weights_and_statistics_stays_frozen_and_resumes(tmp_path: Path) -> None:
    def run(folder: Path, steps: int) -> Any:
        torch.manual_seed(0)
        decoder = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.BatchNorm1d(64))
        objective = Decoded(NegativeDistance(3.0), decoder)
        module = fine_tune(folder, Shifted(SubspaceGaussian()), steps=steps, objective=objective, steps_per_round=3)
        assert decoder[1].num_batches_tracked == 0 and not any(each.requires_grad for each in decoder.parameters())
        return module

    run(tmp_path / "whole", 6)
    for steps in (2, 4):
        run(tmp_path / "parted", steps)
    path = newest_checkpoint(tmp_path / "parted")
    assert path is not None
    content = torch.load(path, weights_only=True)
    assert not any(name.startswith("objective") for name in content["state_dict"])
    # as in an older version, whose checkpoints held the objective under names of its own
    content["state_dict"]["objective.objective.b"] = torch.full((64,), 3.0)
    group = content["optimizer_states"][0]["param_groups"][0]
    group["params"] = [*group["params"], len(group["params"])]
    torch.save(content, path)
    module = run(tmp_path / "parted", 6)
    check_checkpoint(path, module, training=True)
    one, other = (checkpoint(tmp_path / name) for name in ("whole", "parted"))
    assert_same(one["rounds"], other["rounds"])
    assert_same(one["state_dict"], other["state_dict"])


def test_training_ends_when_the_budget_is_spent(tmp_path: Path) -> None:
    module = fine_tune(tmp_path, Shifted(SubspaceGaussian()), steps=1000, max_evaluations=2000)
    # a round costs 32 x 5 calls and its step 64 examples
    assert module.rounds.round == 9 and module.evaluations_spent == 9 * (160 + 64) == 2016
    assert newest_checkpoint(tmp_path).name == "step-000000009.ckpt"  # type: ignore[union-attr]
