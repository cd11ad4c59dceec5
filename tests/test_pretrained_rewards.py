"""Gradient guidance of published latent models toward rewards of their images, for typed prompts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from callbacks import RunCheckpoint
from datamodules import Prompts, SelfSynthesized
from lightning_guide.conditioning import pad_tokens
from lightning_guide.data import Batch
from lightning_guide.evaluation.evaluation import Evaluation
from lightning_guide.guidance import ClassifierFreeGuidance
from lightning_guide.guidance.gradient import ConstantStrength, LookAhead, PosteriorStrength, Strength
from lightning_guide.modules.gradient_fine_tuning import GradientFineTuning
from lightning_guide.modules.gradient_optimization import GradientOptimization
from lightning_guide.objectives import Energy, NegativeEnergy, Objective, RandomHead, Reward, TextMatch, TorchFunction
from lightning_guide.optimization import GainTarget, GeometricReplay, GoalTarget, LowRank
from lightning_guide.optimization.replay import mixture
from lightning_guide.pretrained import DiffusersVAE, LatentSpace, NamedBackbone, OpenClipBackbone, Pretrained
from lightning_guide.runs.checkpoints import newest_checkpoint
from lightning_guide.samplers import Euler
from lightning_guide.training import ConstantRate
from lightning_guide.training.losses import EpsilonLoss
from tests.processes import Processes
from tests.ranks import options
from tests.runs import assert_same, checkpoint, tiny_trainer

pytest.importorskip("diffusers", reason="needs the extra `pretrained`")
pytest.importorskip("transformers", reason="needs the extra `pretrained`")
GOALS = [0.02, -0.02]


class Brightness(Objective):
    """Mean of an image."""

    def value(self, x: Tensor) -> Tensor:
        return x.flatten(1).mean(1)


def space(source: str | Path, **settings: Any) -> LatentSpace:
    """The latents of the tiny model, decoded one at a time."""
    vae = DiffusersVAE(str(source), subfolder="vae", lowest=-1.0, **settings)
    return LatentSpace(vae, 0.0, 1 / (2 * 0.18215), decode_batch=1)


def sampling(source: str | Path, strength: Strength | None = None, *, samples: int = 6, **settings: Any) -> Evaluation:
    """Images under CFG, guided through the decoder."""
    strength = strength or PosteriorStrength(noise=1e-3)
    guidance = LookAhead(strength, decoder=space(source), positive=ClassifierFreeGuidance(2.0))
    return Evaluation(guidance=guidance, sampler=Euler(6), num_samples=samples, batch_size=2, **settings)


def optimize(
    source: str | Path, run: str | Path, objective: Energy | None = None, *, world: int = 1, **settings: Any
) -> GradientOptimization:
    """Algorithm 1 toward two goals, for two prompts."""
    chosen: dict[str, Any] = {"num_rounds": 4, "sampling": sampling(source), "target": GoalTarget(GOALS)} | settings
    module = GradientOptimization(
        Pretrained(f"diffusers:{source}"), objective or Brightness(), at="sample", redraw=False, **chosen
    )
    prompts = Prompts(["a cat", "two dogs", "a tree"], str(source), cache=str(Path(run).parent / "cache"))
    trainer = tiny_trainer(run, limit_test_batches=1.0, **options(world))
    trainer.test(module, datamodule=prompts, verbose=False)
    return module


def history(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "rounds/history.jsonl").read_text().splitlines()]


@pytest.fixture
def source(tiny_pipeline: Callable[[str], Path]) -> Path:
    return tiny_pipeline("sd")


def test_images_approach_the_goal_of_each(source: Path, tmp_path: Path) -> None:
    module = optimize(source, tmp_path / "run", num_rounds=3, sampling=sampling(source, samples=4))
    first, *_, last = history(tmp_path / "run")
    for goal in GOALS:
        before, after = (abs(each[f"objective_goal_{goal}"] - goal) for each in (first, last))
        assert after < 0.5 * before, (goal, first, last)
    assert first["distance"] == 0 < last["distance"] and last["distance_goal_0.02"] != last["distance_goal_-0.02"]
    assert first["nfe"] == 12 and last["nfe"] == 12  # two calls a step
    assert module.rounds.feedback.gradient is not None and module.rounds.feedback.gradient.shape == (4, 3, 16, 16)


@pytest.mark.slow
def test_prompts_and_goals_are_those_of_one_process_on_two(source: Path, processes: Processes, tmp_path: Path) -> None:
    optimize(source, tmp_path / "one", num_rounds=2)
    call = ("tests.test_pretrained_rewards", "optimize")
    (tmp_path / "two").mkdir()
    processes.call_ranks(
        2, call, tmp_path / "two/log", source=str(source), run=str(tmp_path / "two"), world=2, num_rounds=2
    )
    for one, two in zip(*(history(tmp_path / name) for name in ("one", "two")), strict=True):
        for key in one.keys() - {"seconds"}:
            assert two[key] == pytest.approx(one[key], rel=1e-3, abs=1e-4), key


REWARDS: dict[str, Callable[[tuple[str, str]], Energy]] = {
    "random head on ResNet-18": lambda clip: Reward(NamedBackbone(size=32), RandomHead()),
    "head on CLIP": lambda clip: Reward(OpenClipBackbone(*clip), RandomHead()),
    "text": lambda clip: NegativeEnergy(TextMatch("a red car", model=clip[0], weights=clip[1])),
}


@pytest.mark.parametrize("name", REWARDS)
def test_rewards_of_images_rise(name: str, source: Path, tmp_path: Path) -> None:
    from tests.tiny_clip import write_clip

    reward = REWARDS[name](write_clip(tmp_path))
    images = space(source)(torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(0)))
    value, gradient = reward.value_and_gradient(images)
    assert gradient.isfinite().all() and gradient.any() and value.std() > 0
    # a strength in units of the reward, whose gradients are small
    square = float(gradient.flatten(1).square().sum(1).mean())
    goal = float(value.mean() + 3 * value.std())
    chosen = sampling(source, PosteriorStrength(noise=square**0.5), samples=2)
    optimize(source, tmp_path / "run", reward, sampling=chosen, target=GoalTarget(goal), num_rounds=2)
    before, after = history(tmp_path / "run")
    assert after["objective"] > before["objective"]


class Spoiled(Objective):
    """Not a number after some calls."""

    left = 0

    def value(self, x: Tensor) -> Tensor:
        Spoiled.left -= 1
        value = x.flatten(1).mean(1)
        return value * torch.nan if Spoiled.left < 0 else value


def test_what_does_not_fit_is_refused_before_anything_is_drawn(source: Path, tmp_path: Path) -> None:
    calls = 0

    class Counted(Euler):
        def sample(self, *args: Any, **settings: Any) -> Any:
            nonlocal calls
            calls += 1
            return super().sample(*args, **settings)

    def refused(match: str, objective: Objective, decoder: LatentSpace) -> None:
        guidance = LookAhead(ConstantStrength(1.0), decoder=decoder)
        chosen = Evaluation(guidance=guidance, sampler=Counted(4), num_samples=2)
        with pytest.raises(ValueError, match=match) as no:
            optimize(source, tmp_path / "run", objective, sampling=chosen)
        assert "\n" not in str(no.value) and not calls

    refused(
        r"TorchFunction returned a tensor of shape \(2, 16, 16\) for 2 samples",
        TorchFunction("torch.mean", {"dim": 1}),
        space(source),
    )
    other = DiffusersVAE(str(source), subfolder="vae", lowest=-1.0)
    refused(
        r"these latents have 3 channels, got x of shape \(2, 4, 8, 8\)",
        Brightness(),
        LatentSpace(other, [0] * 3, [1] * 3),
    )
    missing = LatentSpace(DiffusersVAE(str(tmp_path)), 0.0, 1.0)
    refused("config.json does not exist; expected the folder of a network", Brightness(), missing)
    with pytest.raises(
        ValueError, match="2 goals need gradients at: sample, and as many samples; got at: sample and num_s"
    ):
        optimize(source, tmp_path / "run", sampling=sampling(source, samples=1))


def test_a_reward_that_fails_later_loses_no_round(source: Path, tmp_path: Path) -> None:
    Spoiled.left = 1 + 1 + 1
    chosen: dict[str, Any] = {"num_rounds": 3, "sampling": sampling(source, samples=2)}
    with pytest.raises(ValueError, match="the objective Spoiled is nan for 2 of 2 samples, first for number 0") as no:
        optimize(source, tmp_path / "run", Spoiled(), **chosen)
    assert "\n" not in str(no.value) and len(history(tmp_path / "run")) == 2
    Spoiled.left = 100
    module, whole = (optimize(source, tmp_path / name, Spoiled(), **chosen) for name in ("run", "whole"))
    assert len(history(tmp_path / "run")) == 3
    assert torch.equal(module.rounds.samples, whole.rounds.samples)  # type: ignore[arg-type]


def test_samples_that_diverge_are_named(source: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="round 1: . of 2 samples are not finite, first number .; the strength of the g"
    ):
        optimize(source, tmp_path / "run", sampling=sampling(source, ConstantStrength(1e30)), num_rounds=2)


# --- algorithm 2, by low-rank additions ----------------------------------------------------------------


def fine_tune(source: str | Path, run: str | Path, *, steps: int, world: int = 1) -> GradientFineTuning:
    """Train additions on guided samples and, in place of data, on samples of the published model."""
    torch.manual_seed(0)
    module = GradientFineTuning(
        LowRank(Pretrained(f"diffusers:{source}"), rank=2),
        EpsilonLoss(),
        objective=Brightness(),
        sampling=sampling(source, samples=4),
        target=GainTarget(0.01),
        at="sample",
        replay=GeometricReplay(0.5, pretraining=0.25),
        steps_per_round=2,
        learning_rate=ConstantRate(1e-3),
    )
    prompts = Prompts(["a cat", "two dogs", "a tree"], str(source), cache=str(Path(source).parent / "cache"))
    data = SelfSynthesized(
        prompts, f"diffusers:{source}", f"{run}/set", 4, sampler=Euler(4), chunk_size=2, batch_size=8 // world
    )
    trainer = tiny_trainer(run, RunCheckpoint(2), steps=steps, **options(world))
    trainer.fit(module, datamodule=data, ckpt_path=newest_checkpoint(run), weights_only=True)
    return module


@pytest.mark.slow
def test_additions_are_fine_tuned_on_guided_samples_and_resumed(source: Path, tmp_path: Path) -> None:
    whole = fine_tune(source, tmp_path / "whole", steps=6)
    for steps in (3, 6):
        parted = fine_tune(source, tmp_path / "parted", steps=steps)
    assert whole.rounds.round == parted.rounds.round == 3
    state = checkpoint(tmp_path / "whole")
    assert_same(state["state_dict"], checkpoint(tmp_path / "parted")["state_dict"])
    names = [name for name in state["state_dict"] if name.startswith("denoiser.")]
    assert names and all(name.endswith((".up", ".down", ".base")) for name in names)
    assert any(bool(added.up.any()) for _, added in whole.denoiser.additions())  # type: ignore[operator]
    first, *_, last = history(tmp_path / "whole")
    assert first["distance"] == 0 < last["distance"] and last["objective"] > first["objective"]


def test_replayed_samples_train_with_their_prompts(source: Path) -> None:
    prompts = Prompts(["a cat", "two dogs"], str(source), cache=str(source.parent / "cache")).prompts()
    batch = Batch(torch.zeros(6, 4, 8, 8), torch.ones(6, 80, 16))
    replay = torch.arange(1.0, 4.0).reshape(1, 3, 1, 1, 1).expand(1, 3, 4, 8, 8)
    labels = torch.tensor([[1, 0, -1]])
    mixed = mixture(batch, replay, labels, [0.5], torch.Generator().manual_seed(0), prompts=prompts)
    assert mixed.condition is not None and mixed.condition.shape == (6, 80, 16)
    expected = {0: torch.ones(80, 16), 3: torch.zeros(80, 16)}
    expected |= {1 + i: pad_tokens(prompts[torch.tensor([1 - i])][0], 80) for i in range(2)}
    values = mixed.x[:, 0, 0, 0].int().tolist()
    assert sorted(values) == [0, 0, 0, 1, 2, 3]
    assert all(torch.equal(found, expected[value]) for found, value in zip(mixed.condition, values, strict=True))


@pytest.mark.slow
def test_two_ranks_fine_tune_on_the_samples_of_one(source: Path, processes: Processes, tmp_path: Path) -> None:
    fine_tune(source, tmp_path / "one", steps=2)
    (tmp_path / "two").mkdir()
    call = ("tests.test_pretrained_rewards", "fine_tune")
    processes.call_ranks(2, call, tmp_path / "log", source=str(source), run=str(tmp_path / "two"), steps=2, world=2)
    one, two = history(tmp_path / "one"), history(tmp_path / "two")
    assert two[0]["objective"] == pytest.approx(one[0]["objective"], rel=1e-3, abs=1e-5)
    assert (tmp_path / "two/set/synthetic-000001.tar").read_bytes() == (
        tmp_path / "one/set/synthetic-000001.tar"
    ).read_bytes()
