"""A guidance that changes no sample is named when a run starts; one that does is not."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks import PostHocEMA
from lightning_guide.denoiser import Denoiser
from lightning_guide.guidance import (
    SIMS,
    Autoguidance,
    AutoguidanceBlend,
    ClassifierFreeGuidance,
    ClassifierFreeGuidancePP,
    ConditionAnnealedGuidance,
    CosineWeight,
    EntropyRectifyingGuidance,
    Guided,
    IndependentConditionGuidance,
    Interval,
    LookAhead,
    Main,
    Neon,
    NoisyInput,
    Perturbed,
    SamplingDropout,
    ScoreScaling,
    SkipLayerGuidance,
    Snapshot,
    StepWindow,
    StochasticSelfGuidance,
    TimeStepGuidance,
)
from lightning_guide.guidance.combinations import FrequencyDecoupled, Rescale
from lightning_guide.guidance.training_free import MPGD, SigmaWindow
from lightning_guide.networks import EDM2UNet
from lightning_guide.noise import KarrasGrid
from lightning_guide.objectives import SquaredDistance
from lightning_guide.runs.models import pretrained
from lightning_guide.samplers import Euler
from tests.evaluated import evaluate, finished_run
from tests.runs import TinyImages, TinyNetwork, evaluation, tiny_module, tiny_trainer

LEVELS = Euler(KarrasGrid(3, sigma_min=0.1, sigma_max=5.0))  # 5, 1.14 and 0.1
HALF = Snapshot("1/2", 0.1)
TARGET = SquaredDistance(torch.zeros(1, 8, 8))


def warned(folder: Path, guidance: Denoiser, **options: Any) -> list[str]:
    """Return the warnings at the start of a trial of a small U-Net with 3 classes under `guidance`."""
    network = EDM2UNet(
        data_shape=(1, 8, 8),
        num_classes=3,
        model_channels=8,
        channel_mult=(1,),
        num_blocks=1,
        attention_resolutions=(8,),
    )
    module = tiny_module(network, average=None, evaluations={"guided": evaluation(guidance, sampler=LEVELS, **options)})
    trainer = tiny_trainer(folder, steps=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, datamodule=TinyImages(shape=(1, 8, 8)))
    begin = "evaluation 'guided': "
    return [str(each.message).removeprefix(begin) for each in caught if str(each.message).startswith(begin)]


@pytest.mark.parametrize(
    ("guidance", "message"),
    [
        (Autoguidance(HALF, 1.0), "Autoguidance has the weight 1, which is off"),
        (ScoreScaling(1.0), "ScoreScaling has the weight 1"),
        (AutoguidanceBlend(HALF, 1.0), "AutoguidanceBlend has the weight 1"),
        (SIMS(HALF, 1.0), "SIMS has the weight 1"),
        (Neon(HALF, 1.0), "Neon with the weight 1 is its base"),
        (
            ClassifierFreeGuidance(Interval(2.0, 1.2, 4.9)),
            "is off in all 3 steps of its sampler: no noise level, 5 to 0.1",
        ),
        (AutoguidanceBlend(HALF, Interval(2.0, 6, 9)), "AutoguidanceBlend is off in all 3 steps"),
        (ClassifierFreeGuidance(CosineWeight(1.0)), "ClassifierFreeGuidance is off in all 3 steps"),
        (ClassifierFreeGuidance(2.0, combination=StepWindow(0.1, 0.3)), "is off in all 3 steps"),
        (ClassifierFreeGuidancePP(Interval(0.6, 1.2, 4.9)), "is off in all 3 steps"),
        (ClassifierFreeGuidance(1.0, combination=Rescale()), "has the weight 1"),
        (ClassifierFreeGuidance(2.0, combination=FrequencyDecoupled([0.0, 0.0])), "is off in all 3 steps"),
        (SkipLayerGuidance(2.0, layers=[]), "SkipBlocks leaves the model as it is: it has no layers"),
        (StochasticSelfGuidance(2.0, share=0), "StochasticSkip leaves the model as it is: its settings change nothing"),
        (ConditionAnnealedGuidance(2.0, scale=0.0), "AnnealedCondition leaves the model as it is"),
        (ConditionAnnealedGuidance(2.0, tau=(1.0, 2.0)), "AnnealedCondition leaves the model as it is"),
        (EntropyRectifyingGuidance(2.0, tau=1.0), "ScaledQueries leaves the model as it is"),
        (TimeStepGuidance(2.0, scale=0.0), "NoisyNoiseEmbedding leaves the model as it is"),
        (Guided([Perturbed([SamplingDropout(0.0)])], [2.0]), "SamplingDropout leaves the model as it is"),
        (Guided([NoisyInput(0.0)], [2.0]), "NoisyInput adds nothing with the amount 0"),
        (Autoguidance(Main(), 2.0), "pushes a model away from itself"),
        (MPGD(TARGET, rate=0.0), "MPGD has the rate 0, which is off"),
        (MPGD(TARGET, rate=1.0, window=SigmaWindow(6, 9)), "MPGD is off in all 3 steps of its sampler"),
        (LookAhead(), "LookAhead has no gradient and target"),
    ],
)
def test_guidance_without_effect_is_named(guidance: Denoiser, message: str, tmp_path: Path) -> None:
    found = warned(tmp_path, guidance)
    assert len(found) == 1 and message in found[0], found


@pytest.mark.parametrize(
    "guidance",
    [
        Main(),
        Autoguidance(HALF, 2.0),
        AutoguidanceBlend(HALF, 2.0, alpha=0.0),
        ClassifierFreeGuidance(Interval(2.0, 0.5, 2.0)),
        ClassifierFreeGuidancePP(1.0),
        ClassifierFreeGuidance(2.0, combination=StepWindow(0.3, 0.7)),
        ConditionAnnealedGuidance(2.0),
        ConditionAnnealedGuidance(2.0, scale=0.0, mixing=0.5),
        IndependentConditionGuidance(2.0),
        StochasticSelfGuidance(2.0),
        SkipLayerGuidance(2.0),
        MPGD(TARGET, rate=1.0),
        Neon(HALF, 2.0),
    ],
)
def test_guidance_with_effect_is_not_named(guidance: Denoiser, tmp_path: Path) -> None:
    assert warned(tmp_path, guidance) == []


def test_labels_that_make_no_difference(tmp_path: Path) -> None:
    (found,) = warned(tmp_path, ClassifierFreeGuidance(2.0), labels=-1)
    assert found == "classifier-free guidance drops the condition of samples, but these samples have none"
    guided = {"guided": evaluation(IndependentConditionGuidance(2.0))}
    module = tiny_module(TinyNetwork(num_classes=1), average=None, evaluations=guided)
    with pytest.warns(UserWarning, match="'guided': ICG draws its random class from 1 class"):
        tiny_trainer(tmp_path, steps=1).fit(module, datamodule=TinyImages(classes=1))


def test_guider_with_the_weights_of_the_model(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    with pytest.warns(UserWarning, match="'self': Autoguidance pushes a model away from itself"):
        evaluate(run, {"self": evaluation(Autoguidance(Snapshot("1/1", 0.05), 2.0))}, average=0.05)


def test_model_in_training_is_not_taken_for_the_one_that_it_begins_with(tmp_path: Path) -> None:
    """SIMS trains a copy of its base: equal at the start, but no longer when its snapshots are stored."""
    base = str(finished_run(tmp_path / "base"))
    sims = SIMS(Snapshot("1/2", 0.05), 2.0, base=Snapshot("1/1", 0.05, run=base))
    module = tiny_module(evaluations={"sims": evaluation(sims)}, average=None)
    module.denoiser.load_state_dict(pretrained(base).state_dict())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tiny_trainer(tmp_path / "run", PostHocEMA(4), steps=2, limit_val_batches=1.0).fit(
            module, datamodule=TinyImages()
        )
    assert not [each for each in caught if "away from itself" in str(each.message)]
