"""Two processes with gloo on the CPU: the rounds of one process, fine-tuning equal up to chance, bitwise resuming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from callbacks import RunCheckpoint
from lightning_guide.distributions.subspace import Direction, SubspaceGaussian
from lightning_guide.modules.gradient_fine_tuning import GradientFineTuning
from lightning_guide.modules.gradient_optimization import GradientOptimization
from lightning_guide.objectives import Quadratic
from lightning_guide.optimization import GainTarget, MeanRefit, Shifted
from lightning_guide.runs.checkpoints import newest_checkpoint
from lightning_guide.training.learning_rate import InverseSqrtRate
from tests.processes import Processes
from tests.ranks import options
from tests.runs import checkpoint, tiny_trainer
from tests.test_modules_gradient import data, sampling, u_of

SAMPLES = 13  # 7 and 6, in batches of 2: one process draws one batch more than the other


def optimize(folder: str, world: int, *, at: Any, rounds: int) -> None:
    """Run algorithm 1 on `world` ranks."""
    chosen = sampling(samples=SAMPLES, batch_size=2)
    module = GradientOptimization(
        SubspaceGaussian(), Quadratic(Direction()), chosen, num_rounds=rounds, at=at, target=GainTarget(0.4)
    )
    trainer = tiny_trainer(folder, limit_test_batches=1.0, **options(world))
    trainer.test(module, datamodule=data(), verbose=False)


def fine_tune(folder: str, world: int, *, steps: int, every: int = 1000) -> None:
    """Run algorithm 2 on `world` ranks."""
    import torch

    module = GradientFineTuning(
        Shifted(SubspaceGaussian()),
        MeanRefit(),
        objective=Quadratic(Direction()),
        sampling=sampling(samples=SAMPLES, batch_size=4),
        steps_per_round=2,
        target=GainTarget(0.2),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0),
        learning_rate=InverseSqrtRate(1.0),
    )
    trainer = tiny_trainer(folder, RunCheckpoint(every), steps=steps, **options(world))
    latest = newest_checkpoint(folder)
    trainer.fit(module, datamodule=data(batch_size=64 // world), ckpt_path=latest, weights_only=True)


def history(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "rounds/history.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("at", ["mean", pytest.param("sample", marks=pytest.mark.slow)])
def test_algorithm_1_on_two_processes_equals_one_process(processes: Processes, tmp_path: Path, at: str) -> None:
    for world, stops in ((1, (8,)), (2, (3, 8))):  # on two, also stopped and resumed
        folder = tmp_path / str(world)
        folder.mkdir()
        for rounds in stops:
            arguments: dict[str, Any] = {"folder": str(folder), "world": world, "at": at, "rounds": rounds}
            processes.call_ranks(world, ("tests.test_ddp_gradient", "optimize"), folder / "log", **arguments)
    alone, both = history(tmp_path / "1"), history(tmp_path / "2")
    assert len(alone) == len(both) == 8 and len({record["objective"] for record in alone}) == 8
    for one, two in zip(alone, both, strict=True):
        assert one.keys() == two.keys() and {"off_ratio", "spread", "gradient_norm"} <= one.keys()
        for key in one.keys() - {"seconds"}:
            assert two[key] == pytest.approx(one[key], rel=1e-4, abs=1e-4), key
    assert (at == "mean") == ("objective_of_mean" in alone[0])


def test_fine_tuning_on_two_processes_agrees_up_to_chance_and_resumes_bitwise(
    processes: Processes, tmp_path: Path
) -> None:
    target = ("tests.test_ddp_gradient", "fine_tune")
    for name, world, stops in (("1", 1, (60,)), ("2", 2, (60,)), ("parted", 2, (31, 60))):
        folder = tmp_path / name
        folder.mkdir()
        for steps in stops:
            processes.call_ranks(world, target, folder / "log", folder=str(folder), world=world, steps=steps)
    alone, both, parted = (history(tmp_path / name) for name in ("1", "2", "parted"))
    assert len(alone) == len(both) == 30
    # the samples agree while the model is the same; later the replayed rows of the batches differ
    assert both[0]["objective"] == pytest.approx(alone[0]["objective"], rel=1e-4)
    late = [sum(map(u_of, records[-5:])) / 5 for records in (alone, both)]
    assert late[0] == pytest.approx(late[1], abs=0.03) and late[0] > 0.9
    seconds = [{key: value for key, value in record.items() if key != "seconds"} for record in both]
    assert seconds == [{key: value for key, value in record.items() if key != "seconds"} for record in parted]
    one, other = (checkpoint(tmp_path / name)["state_dict"] for name in ("2", "parted"))
    assert all((one[key] == other[key]).all() for key in one)
