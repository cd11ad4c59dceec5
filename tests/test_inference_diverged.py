"""Diverged samples are detected, and evaluations warn of them."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest
import torch

from lightning_guide.denoiser import Denoiser
from lightning_guide.guidance import Clipped, Main, ScoreScaling
from lightning_guide.inference import is_diverged
from tests.runs import TinyImages, evaluation, tiny_module, tiny_trainer


def test_diverged_samples_are_detected() -> None:
    x = torch.tensor([[0.0, 49.9], [0.0, -50.1], [math.nan, 0.0], [0.0, -math.inf]])
    assert is_diverged(x, 0.5).tolist() == [False, True, True, True]
    assert is_diverged(x[:, :, None], 1.0).tolist() == [False, False, True, True]


@pytest.mark.parametrize(("guidance", "warns"), [(Main(), False), (ScoreScaling(1e9), True)])
def test_evaluation_warns_of_diverged_samples(tmp_path: Path, guidance: Denoiser, warns: bool) -> None:
    module = tiny_module(evaluations={"wild": evaluation(guidance)}, average=None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tiny_trainer(tmp_path, limit_val_batches=1.0).validate(module, datamodule=TinyImages(), verbose=False)
    messages = [str(warning.message) for warning in caught]
    found = [message for message in messages if "are not finite or out of bounds, first index" in message]
    assert bool(found) == warns and all("evaluation 'wild'" in message for message in found)
    assert all("the weight of its guidance may be too large" in message for message in found)


def test_the_weight_of_guidance_is_blamed_only_under_guidance(tmp_path: Path) -> None:
    assert not evaluation(Main()).guided and not evaluation(Clipped()).guided
    assert evaluation(Clipped(positive=ScoreScaling(2.0))).guided
    module = tiny_module(evaluations={"wild": evaluation(Main())}, average=None)
    with torch.no_grad():
        next(module.denoiser.parameters()).fill_(math.nan)
    with pytest.warns(UserWarning, match=r"samples are not finite or out of bounds, first index \d+$"):
        tiny_trainer(tmp_path, limit_val_batches=1.0).validate(module, datamodule=TinyImages(), verbose=False)
