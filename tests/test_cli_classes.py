"""Arguments of classes as their sources say, compared with those that Python reports."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest

from lightning_guide import PUBLIC, RENAMED_ARGUMENTS
from lightning_guide.cli.classes import argument_mistakes, class_arguments
from lightning_guide.utils.recipe import public_path

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
MAIN = str(ROOT / "configs/digits/main.yaml")


def test_sources_say_what_signatures_say() -> None:
    read = 0
    for package in map(importlib.import_module, PUBLIC):
        for name in package.__all__:
            found = getattr(package, name)
            for path in (name, public_path(found)) if isinstance(found, type) else ():
                if (arguments := class_arguments(path)) is not None:
                    old = RENAMED_ARGUMENTS.get(name, {})
                    assert [each for each in arguments if each not in old] == list(inspect.signature(found).parameters)
                    read += 1
    assert read > 300  # of 500 paths of 250 classes


def test_old_and_foreign_names_are_read_or_left_to_the_parser() -> None:
    for path in ("lightning_guide.networks.edm2_unet.EDM2UNet", "lightning_guide.EDM2UNet"):
        assert class_arguments(path) == class_arguments("EDM2UNet")
    assert class_arguments("datamodules.latents.Latents") == class_arguments("Latents")
    for name, renamed in RENAMED_ARGUMENTS.items():
        known = class_arguments(name)
        assert known is None or {*renamed, *renamed.values()} <= set(known)
    for name in ("torch.optim.Adam", "Adam", "lightning_guide.nowhere.EDM2UNet", "lightning_guide.runs.pretrained"):
        assert class_arguments(name) is None


@pytest.mark.parametrize("config", [*CONFIGS, ROOT / "tests/data/run_ae12ae3/config.yaml"], ids=lambda path: path.stem)
def test_shipped_and_stored_configs_are_accepted(config: Path) -> None:
    assert not [*argument_mistakes([], [str(config)])]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--model.learning_rat.peak", "DiffusionModule has no argument learning_rat; did you mean learning_rate?"),
        (
            "--model.init_args.learning_rate.init_args.peek=1",
            "InverseSqrtRate has no argument peek; did you mean peak?",
        ),
        (
            "--model.denoiser.network.model_chanels",
            "EDM2UNet has no argument model_chanels; did you mean model_channels",
        ),
        ("--data.batch_sise", "Digits has no argument batch_sise; did you mean batch_size?"),
    ],
)
def test_misspelt_options_are_refused(option: str, message: str) -> None:
    (said,) = argument_mistakes([option, "1"], [MAIN])
    assert message in said


@pytest.mark.parametrize(
    "words",
    ["--model.learning_rate ConstantRate --model.learning_rate.any 1", "--model.evaluations.autoguidance_1.5.seed 1",
     "--model.help DiffusionModule", "--trainer.callbacks.folder x", "--model.optimizer.lr 1"],
)  # fmt: skip
def test_options_of_classes_that_only_the_parser_knows_are_left_to_it(words: str) -> None:
    assert not [*argument_mistakes(words.split(), [MAIN])]


def test_words_and_lists_in_place_of_numbers_are_refused(tmp_path: Path) -> None:
    """In configs, inherited and nested ones too, and in options; what the parser converts is left to it."""
    file = tmp_path / "wrong.yaml"
    network = "{model_channels: thirty, channel_mult: [1, 2], dropout: 1e-1}"
    model = f"{{label_dropout: often, denoiser: {{init_args: {{network: {{init_args: {network}}}}}}}}}"
    file.write_text(f"base: {MAIN}\nmodel: {{init_args: {model}}}\ndata: {{init_args: {{batch_size: [1]}}}}\n")
    words = ["--data.num_workers=many", "--data.seed", "3", "--model.seed", "seven", "--model.max_bad_steps=1e1"]
    words += ["--model.seed=inf", "--model.label_dropout=nan"]  # numbers, but no whole ones
    assert [*argument_mistakes(words, [str(file)])] == [
        f"{file}, line 2: model.init_args.label_dropout is 'often'; expected a number",
        f"{file}, line 2: model.init_args.denoiser.init_args.network.init_args.model_channels is 'thirty'; expected a "
        "whole number",
        f"{file}, line 3: data.init_args.batch_size is [1]; expected a whole number",
        "--data.num_workers is 'many'; expected a whole number",
        "--model.seed is 'seven'; expected a whole number",
        "--model.seed is 'inf'; expected a whole number",
    ]
