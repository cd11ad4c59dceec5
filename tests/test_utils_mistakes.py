"""A wrong key, class or value anywhere is named with its file and line, its key path and the nearest right name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import lightning_guide as lg
from lightning_guide.cli import main
from lightning_guide.runs.session import open_session
from lightning_guide.utils.parser import update_paths
from tests.test_cli import TINY

RUN = Path(__file__).parent / "data/run_ae12ae3"
FIT = ["fit", "-c", "tiny.yaml", "--trainer.default_root_dir", "run"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with tiny.yaml and a run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-guide"])
    Path("tiny.yaml").write_text(yaml.safe_dump(TINY))
    Path("trained").symlink_to(RUN)
    return tmp_path


def failure(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return the sentence that a command ends with."""
    with pytest.raises(SystemExit) as left:
        main(words)
    said = capsys.readouterr().err if left.value.code == 2 else str(left.value.code)
    (line,) = said.splitlines()
    assert left.value.code not in (0, None) and line.startswith("lightning-guide: error: ")
    return line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "label_dropuot: 0.1",
            "over.yaml, line 3: model.init_args.label_dropuot: DiffusionModule has no argument label_dropuot; "
            "did you mean label_dropout?",
        ),
        (
            "guidances: {g: {class_path: ClassifierFreeGuidance, init_args: {wieght: 2}}}",
            "line 3: model.init_args.guidances.g.init_args.wieght: ClassifierFreeGuidance has no argument wieght; did",
        ),
        (
            "evaluations: {a: {num_sampels: 3}}",
            "evaluations.a.num_sampels: Evaluation has no argument num_sampels; did",
        ),
        ("evaluations: {a: {sampler: Huen}}", "evaluations.a.sampler: there is no class Huen; did you mean Heun?"),
        (
            "evaluations: {a: {sampler: {class_path: PostHocEMA}}}",
            "a.sampler.class_path: PostHocEMA is not a Sampler; expected a Sampler: ",
        ),
        (
            "optimizer: {class_path: torch.optim.Adam, init_args: {lrr: 1}}",
            "Adam has no argument lrr; did you mean lr?",
        ),
        ("optimizer: Adamm", "model.init_args.optimizer: there is no class Adamm; did you mean Adam?"),
        (
            "evaluations: {a: {guidance: {class_path: ClassifierFreeGuidance, init_args: {weight: null}}}}",
            "model.init_args.evaluations.a.guidance: ClassifierFreeGuidance: weight is None; expected a number",
        ),
        (
            "guidances: {g: {class_path: ClassifierFreeGuidance, init_args: {weight: "
            "{class_path: Interval, init_args: {weight: 2, low: 3, high: 1}}}}}",
            "model.init_args.guidances.g.init_args.weight: a guidance interval needs 0 <= low < high in sigma",
        ),
        ("seed: high", "model.init_args.seed is 'high'; expected a whole number"),
        ("seed: inf", "model.init_args.seed is 'inf'; expected a whole number"),
        ("denoiser: 3", "model.init_args.denoiser is 3; expected a Denoiser, as class_path and init_args"),
        ("evaluations: [1]", "model.init_args.evaluations is [1]; expected names and values or null"),
    ],
)
def test_mistakes_in_files_have_a_line_and_a_key_path(
    text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("over.yaml").write_text(f"model:\n  init_args:\n    {text}\n")
    said = failure(capsys, *FIT, "-c", "over.yaml")
    assert "error: over.yaml, line 3: model.init_args." in said and message in said
    assert message.removeprefix("over.yaml, ").removeprefix("line 3: ") in refused_in_python(text)


def test_an_argument_that_is_missing_is_named_with_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    text, place = "evaluations: {a: {guidance: {class_path: Autoguidance}}}", "model.init_args.evaluations.a.guidance"
    Path("over.yaml").write_text(f"model:\n  init_args:\n    {text}\n")
    said = failure(capsys, *FIT, "-c", "over.yaml")
    assert f"error: over.yaml, line 3: {place}: Autoguidance: guider is None; expected a Denoiser" in said
    assert f"{place} has no guider, which Autoguidance needs" in refused_in_python(text)


def refused_in_python(text: str) -> str:
    """What is said of arguments of the model in settings from Python."""
    arguments = {**TINY["model"]["init_args"], **yaml.safe_load(text)}
    with pytest.raises(ValueError) as refused:
        open_session({**TINY, "model": {**TINY["model"], "init_args": arguments}})
    return str(refused.value)


@pytest.mark.parametrize("text", ["label_dropuot: 0.1", "optimizer: Adamm", "denoiser: 3"])  # a key, a class, a value
def test_mistakes_in_the_base_of_a_file_are_named_there(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("over.yaml").write_text(f"model:\n  init_args:\n    {text}\n")
    Path("inherits.yaml").write_text("base: over.yaml\nseed_everything: 1\n")
    said = failure(capsys, *FIT, "-c", "inherits.yaml")
    assert said == failure(capsys, *FIT, "-c", "over.yaml") and "error: over.yaml, line 3: model.init_args." in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "trainer: {callbacks: [{class_path: PostHocEMA, init_args: {every_image: 3}}]}",
            "trainer.callbacks.0.init_args",
        ),
        ("trainer: {max_steps: many}", "trainer.max_steps is 'many'; expected a whole number"),
        ("data: {init_args: {batch_sise: 3}}", "data.init_args.batch_sise: Points has no argument batch_sise; did you"),
        ("data: {class_path: Heun}", "data.class_path: Heun is not a LightningDataModule; expected a"),
        ("model: {learning_rate: {peek: 3}}", "model.learning_rate is {'peek': 3}; expected a LearningRate, as class_"),
        (
            "model: {learning_rate: {peak: 0.1}, init_args: {label_dropuot: 1}}",  # the first is right
            "error: over.yaml, line 1: model.init_args.label_dropuot: DiffusionModule has no argument",
        ),
        ("model: {init_arg: {seed: 3}}", "model.init_arg is neither class_path nor init_args; did you mean init_args?"),
        (
            "model: {class_path: lightning_guide.modules.DifusionModule}",
            "DifusionModule; did you mean DiffusionModule?",
        ),
        ("model: {class_path: my_package.Model}", "there is no class my_package.Model (No module named 'my_package')"),
        ("model: 3", "model is 3; expected a LightningModule, as class_path and init_args"),
    ],
)
def test_mistakes_in_other_parts(text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("over.yaml").write_text(text)
    said = failure(capsys, *FIT, "-c", "over.yaml")
    assert "over.yaml, line 1: " in said and message in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--model.learning_rat.peak 1",
            "--model.learning_rat.peak: DiffusionModule has no argument learning_rat; did you",
        ),
        (
            "--model.init_args.denoiser.widht=1",
            "--model.init_args.denoiser.widht: LogDensityMLP has no argument widht; did",
        ),
        (
            "--model.evaluations.auto.guidance.wieght 1",
            "auto.guidance.wieght: Autoguidance has no argument wieght; did",
        ),
        (
            "--model.denoiser LogDensityMPL",
            "--model.denoiser: there is no class LogDensityMPL; did you mean LogDensityMLP?",
        ),
        (
            "--data Heun",
            "--data: Heun is not a LightningDataModule; expected a LightningDataModule: CaptionedImages, DigitCaptions",
        ),
        (
            "--trainer.callbacks+=SampleGird",
            "--trainer.callbacks+=SampleGird: there is no class SampleGird; did you mean",
        ),
        (
            "--trainer.callbacks.every_image 3",
            "--trainer.callbacks.every_image: MetricsReport has no argument every_image",
        ),
        ("--trainer.max_steps many", "--trainer.max_steps is 'many'; expected a whole number"),
        ("--model.evaluations.auto.guidance.weight strong", "guidance.weight is 'strong'; expected a number or "),
        ("--model.evaluations.auto.sampler fast", "auto.sampler is 'fast'; expected a Sampler: "),
        ("--trainer.logger CSVLoger", "--trainer.logger: there is no class CSVLoger; did you mean CSVLogger?"),
    ],
)
def test_mistakes_in_options_name_the_option(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = failure(capsys, *FIT, *words.split())
    assert f"error: {message}" in said or message in said
    assert said.endswith("(lightning-guide fit --help)")


def test_all_mistakes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    guidance = {"class_path": "Autoguidance", "init_args": {"weight": "strong"}}
    others = {"denoiser": 3, "evaluations": {"a": {"sampler": "Huen", "guidance": guidance}}}
    wrong = {"seed": "high", **others}
    Path("over.yaml").write_text(yaml.safe_dump({"model": {"init_args": wrong}}, sort_keys=False))
    with pytest.raises(SystemExit):  # words for numbers first, which need no library
        main([*FIT, "-c", "over.yaml"])
    assert "over.yaml, line 3: model.init_args.seed is 'high'; expected a whole number" in capsys.readouterr().err
    Path("over.yaml").write_text(yaml.safe_dump({"model": {"init_args": others}}, sort_keys=False))
    with pytest.raises(SystemExit) as left:
        main([*FIT, "-c", "over.yaml", "--trainer.max_steps", "many"])
    assert left.value.code == 2
    head, *lines = capsys.readouterr().err.splitlines()
    expected = ("denoiser is 3", "no class Huen", "weight is 'strong'; expected a number or")
    assert head == "lightning-guide: error: 4 mistakes:" and all(line.startswith("- ") for line in lines)
    for mistake in ("--trainer.max_steps is 'many'; expected a whole number", *expected):
        assert len([line for line in lines if mistake in line]) == 1
    with pytest.raises(ValueError, match="^4 mistakes:\n- model.init_args."):
        init_args = {**TINY["model"]["init_args"], **wrong}
        open_session({**TINY, "model": {**TINY["model"], "init_args": init_args}})


def test_mistakes_in_files_of_guidances_and_searches(capsys: pytest.CaptureFixture[str]) -> None:
    guidance: Any = {"class_path": "ClassifierFreeGuidance", "init_args": {"wieght": 2}}
    axes = {"w": {"path": "guidance.init_args.weight", "values": [1]}}
    for text, message in (
        ({"model": {"init_args": {"guidances": {"g": guidance}}}}, "wieght; did you mean weight?"),
        ({"model": {"init_args": {"guidances": {"g": {"class_path": "Heun"}}}}}, "Heun is not a Denoiser; expected"),
        ({"model": {"init_args": {"guidance": {"g": guidance}}}}, "(did you mean guidances by guidance?)"),
    ):
        Path("own.yaml").write_text(yaml.safe_dump(text))
        said = failure(capsys, "gallery", "trained", "own.yaml", "--out", "out")
        assert "own.yaml" in said and message in said
    for text, message in (
        (
            {"axes": axes, "evaluation": {"guidance": guidance}},
            "own.yaml, line 10: evaluation.guidance.init_args.wieght: ",
        ),
        ({"axis": axes}, "did you mean axes?"),
        ({"axes": {"w": {"path": "a", "valeus": [1]}}}, "did you mean values?"),
        ({"axes": axes, "objectives": {"fd": "lowset"}}, "did you mean lowest?"),
        ({"axes": {"w": {"path": "sampelr", "values": [1]}}}, "did you mean sampler?"),
    ):
        Path("own.yaml").write_text(yaml.safe_dump(text, sort_keys=True))
        said = failure(capsys, "sweep", "trained", "own.yaml", "--out", "out")
        assert "own.yaml" in said and message in said
    Path("over.yaml").write_text("model: {init_args: {label_dropuot: 0.1}}\n")
    Path("own.yaml").write_text(yaml.safe_dump({"axes": axes}))
    said = failure(capsys, "sweep", "trained", "own.yaml", "--out", "out", "--configs", "over.yaml")
    assert "over.yaml, line 1: model.init_args.label_dropuot: " in said
    for words in (("gallery", "trained", "none.yaml"), ("sweep", "trained", "none.yaml", "--out", "out")):
        assert "none.yaml does not exist" in failure(capsys, *words)


def test_mistakes_from_python_name_the_run_and_the_key() -> None:
    run = lg.Run(RUN)
    with pytest.raises(
        ValueError, match=r"evaluations.a.num_sampels: Evaluation has no argument num_sampels; did you mean"
    ):
        run.evaluate({"a": {"num_sampels": 3}})
    with pytest.raises(
        ValueError, match="trainer.max_stepz: Trainer has no argument max_stepz; did you mean max_steps"
    ):
        run.evaluate(trainer={"max_stepz": 3})


def test_a_file_for_one_part_may_have_a_base(capsys: pytest.CaptureFixture[str]) -> None:
    Path("low.yaml").write_text("max_steps: 3\nlog_every_n_steps: 7\n")
    Path("high.yaml").write_text("base: low.yaml\nmax_steps: 5\n")
    for words in (["--trainer=high.yaml"], ["--trainer", "high.yaml"]):
        with pytest.raises(SystemExit):
            main([*FIT[:3], *words, "--trainer.default_root_dir", "run", "--print_config"])
        printed = yaml.safe_load(capsys.readouterr().out)
        assert printed["trainer"]["max_steps"] == 5 and printed["trainer"]["log_every_n_steps"] == 7


def test_short_name_of_a_function_is_one_of_a_class(capsys: pytest.CaptureFixture[str]) -> None:
    guider = "model.evaluations.auto.guidance.guider"
    source = ["--model.denoiser.source=edm2:a.pkl", f"--{guider}.source=edm2:b.pkl"]
    Path("short.yaml").write_text("model: {init_args: {denoiser: Pretrained}}\n")
    for words in (
        ["--model.denoiser=Pretrained", f"--{guider}", "Pretrained"],
        ["-c", "short.yaml", f"--{guider}.class_path", "Pretrained"],
    ):
        with pytest.raises(SystemExit) as left:
            main([*FIT, *words, *source, "--print_config"])
        assert left.value.code in (0, None)
        arguments = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
        found = [arguments["denoiser"], arguments["evaluations"]["auto"]["guidance"]["init_args"]["guider"]]
        assert [each["class_path"] for each in found] == ["lightning_guide.pretrained.Pretrained"] * 2
        assert [each["init_args"]["source"] for each in found] == ["edm2:a.pkl", "edm2:b.pkl"]
    assert update_paths({"folder": "Pretrained", "a": ["Pretrained"]}) == {"folder": "Pretrained", "a": ["Pretrained"]}
