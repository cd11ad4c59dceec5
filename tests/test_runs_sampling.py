"""Odd and wrong arguments of `lightning_guide.sample`, and the state of the process and the model after it."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

import lightning_guide as lg
from lightning_guide.distributions import gaussian
from tests.small_networks import randomize_weights
from tests.test_runs_run import DATA, STEPS, random_states

POINTS = lg.gaussian([1.0, -1.0], 0.5)


@pytest.fixture(scope="module")
def model() -> lg.Denoiser:
    """Average of the stored run, of 10 classes."""
    return lg.load(DATA / "run_ae12ae3")


@pytest.mark.parametrize("labels", [(1, 2), range(1, 3), np.array([1, 2], np.int32), [np.int64(1), torch.tensor(2)]])
def test_labels_of_any_library_are_read(labels: Any, model: lg.Denoiser) -> None:
    assert torch.equal(lg.sample(model, STEPS, labels=labels), lg.sample(model, STEPS, labels=[1, 2]))


@pytest.mark.parametrize(
    "labels",
    [[], [1.5], [True], [None], "12", ["a"], 3, [[1], [2]], [[1, 2], [3]], {1}, [2**70], torch.eye(2), [float("nan")]],
)
def test_labels_of_another_kind_are_refused(labels: Any, model: lg.Denoiser) -> None:
    with pytest.raises(
        ValueError, match=r"sample: labels are .*; expected whole numbers from -1 \(none\) to 9, one"
    ) as raised:
        lg.sample(model, STEPS, labels=labels)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": [0] * 500 + [10]}, r"the label of sample 500 is 10; expected whole numbers from -1 \(none\) to 9"),
        ({"prompts": torch.zeros(1, 2, 3)}, "prompts are given, but this Preconditioned reads none"),
        ({"labels": [1, 2], "count": 3}, "count is 3, but there are 2 labels or prompts"),
        ({}, "nothing gives the number of samples; expected labels, prompts or count"),
        ({"count": 0}, "count is 0; expected a whole number from 1 on"),
        ({"count": 2.0}, "count is 2.0; expected a whole number from 1 on"),
        ({"count": "2"}, "count is '2'; expected a whole number from 1 on"),
        ({"count": 1, "batch_size": 0}, "batch_size is 0; expected a whole number from 1 on"),
        ({"count": 1, "batch_size": -1}, "batch_size is -1; expected a whole number from 1 on"),
        ({"count": 1, "seed": 1.5}, "seed is 1.5; expected a whole number"),
        ({"count": 1, "seed": None}, "seed is None; expected a whole number"),
        ({"count": 1, "seed": -1}, "seed is -1; expected a whole number from 0 on"),
        ({"count": 1, "device": "nowhere"}, "the device 'nowhere' cannot be used here"),
        ({"count": 1, "sampler": 18}, r"the sampler is 18; expected one such as Heun\(18\)"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str, model: lg.Denoiser) -> None:
    with pytest.raises(ValueError, match=message):
        lg.sample(model, **({"sampler": STEPS} | arguments))


@pytest.mark.parametrize("denoiser", ["runs/first", None, torch.nn.Linear(2, 2)])
def test_what_is_no_denoiser_is_refused(denoiser: Any) -> None:
    with pytest.raises(ValueError, match=r"sample: the denoiser is .*; expected a model such as load\(run\)"):
        lg.sample(denoiser, count=1)


def test_guidances_check_what_they_need(model: lg.Denoiser) -> None:
    points = gaussian([0.0, 0.0], 1.0)
    with pytest.raises(ValueError, match="classifier-free guidance needs a model with labels or embeddings"):
        lg.sample(lg.ClassifierFreeGuidance(2.0, positive=points), STEPS, count=1)
    with pytest.raises(ValueError, match=r"of the model under evaluation, and there is none; .* positive=model"):
        lg.sample(lg.ClassifierFreeGuidance(2.0), STEPS, labels=[1])


def test_icg_draws_the_given_prompts() -> None:
    network = lg.EDM2UNet(
        (1, 8, 8), token_channels=4, model_channels=8, channel_mult=[1], num_blocks=1, attention_resolutions=[8]
    )
    randomize_weights(network)
    texts, model = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0)), lg.Preconditioned(network)
    guided = lg.IndependentConditionGuidance(3.0, positive=model)
    given = lg.IndependentConditionGuidance(3.0, positive=model, prompts=texts)
    drawn, same, plain = (lg.sample(each, STEPS, prompts=texts) for each in (guided, given, model))
    assert torch.equal(drawn, same) and not torch.allclose(drawn, plain)


def test_huge_seeds_are_seeds() -> None:
    assert not torch.equal(*(lg.sample(POINTS, STEPS, count=1, seed=seed) for seed in (0, 2**70)))


def test_sampling_leaves_the_modes_of_the_model(model: lg.Denoiser) -> None:
    copied = copy.deepcopy(model).train()
    next(copied.children()).eval()
    before = [module.training for module in copied.modules()]
    assert torch.equal(lg.sample(copied, STEPS, count=1), lg.sample(model, STEPS, count=1))
    with pytest.raises(ValueError, match="expected a model in its place"):
        lg.sample(lg.Autoguidance(lg.Snapshot("1/2", 0.1), 2.0, positive=copied), STEPS, count=1)
    assert before == [module.training for module in copied.modules()] and any(before) and not all(before)


def test_sampling_leaves_random_states_and_the_default_type(model: lg.Denoiser) -> None:
    before = random_states()
    torch.set_default_dtype(torch.float64)
    try:
        x = lg.sample(model, STEPS, count=2)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(x, lg.sample(model, STEPS, count=2)) and x.dtype == torch.float32
    assert random_states() == before and torch.is_grad_enabled()


def test_gradients_guide_in_inference_mode(model: lg.Denoiser) -> None:
    guided = lg.DPS(lg.SquaredDistance([0.5]), 0.1, positive=model)
    expected = lg.sample(guided, STEPS, labels=[1])
    with torch.inference_mode():
        assert torch.equal(lg.sample(guided, STEPS, labels=[1]), expected)
