"""The first answer of the command line: help, version and typing errors, in a process that never imports torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_guide.cli import COMMANDS
from lightning_guide.cli.front import answer
from lightning_guide.cli.help import EXAMPLES, OPTIONS

ROOT = Path(__file__).resolve().parents[1]
DIGITS = str(ROOT / "configs/digits/small.yaml")
# The process of the command line, which tells at its end what it has imported. It is forked from one that has only
# imported the package, once per line of input: folder, file of the output, file of the errors, words.
SCRIPT = """
import atexit, json, os, sys
from lightning_guide.cli import main
heavy = ("torch", "lightning", "jsonargparse", "torchvision", "matplotlib")
for line in sys.stdin:
    folder, output, errors, *words = json.loads(line)
    if child := os.fork():
        _, status, usage = os.wait4(child, 0)
        print(json.dumps([os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime]), flush=True)
        continue
    for number, path in ((1, output), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    atexit.register(lambda: print("heavy:", *[name for name in heavy if name in sys.modules], file=sys.stderr))
    os.chdir(folder)
    os.environ["HOME"] = folder
    main(words)
    break
"""
Call = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Call]:
    """Returns the exit status and the output of `lightning-guide WORDS`, which imports nothing heavy."""
    output, errors = (tmp_path_factory.mktemp("front") / name for name in ("output", "errors"))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", SCRIPT], cwd=ROOT, env=environment, **pipes) as server:

        def one(*words: object, folder: Path = ROOT) -> tuple[int, str]:
            request = [str(folder), str(output), str(errors), *map(str, words)]
            print(json.dumps(request), file=server.stdin, flush=True)
            status, seconds = json.loads(server.stdout.readline())
            lines = errors.read_text().rstrip("\n").split("\n")
            assert lines[-1] == "heavy:", lines
            assert seconds < 5  # 0.1 s on one core of 2023
            return status, output.read_text() + "\n".join(lines[:-1])

        yield one
        server.stdin.close()


def test_import_of_the_package_imports_nothing_heavy() -> None:
    script = "import sys, lightning_guide; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_all_commands_are_named_in_groups(call: Call, words: tuple[str, ...]) -> None:
    status, said = call(*words)
    assert status == 0
    for name, command in COMMANDS.items():
        assert f"\n  {name} " in said and command.summary in said and f"\n{command.group}:" in said


@pytest.mark.parametrize("word", ["--verson", "nonsense"])
def test_what_is_no_command_is_refused_in_one_line(call: Call, word: str) -> None:
    status, said = call(word)
    assert status == 2 and said.count("\n") == 0 and all(name in said for name in COMMANDS)


def test_an_option_that_is_missing_is_named(call: Call) -> None:
    said = call("tune", "runs/digits/main", "configs/search/digits.yaml", "--out", "out")[1]
    assert "tune needs --budget: how many images may be generated" in said


def test_nearest_command_is_suggested(call: Call) -> None:
    for word, near in (("fitt", "fit"), ("galery", "gallery"), ("Predict", "predict"), ("recontruct", "reconstruct")):
        assert f"{word!r} is not a command of lightning-guide; did you mean {near}?" in call(word)[1]


def test_version_names_the_packages_it_depends_on(call: Call) -> None:
    status, said = call("--version")
    assert status == 0 and said.startswith("lightning-guide 0.") and "torch 2" in said and "lightning 2" in said


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_is_short_and_has_an_example(call: Call, name: str) -> None:
    status, said = call(name, "--help")
    lines = said.splitlines()
    assert status == 0 and 10 < len(lines) < 45 and max(map(len, lines)) <= 120
    assert f"lightning-guide {name} {EXAMPLES[name][0]}" in said and "--help all" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("fit -c {digits} --modle.x 1", "--modle.x is not an option of fit; did you mean --model.x?"),
        ("fit -c {digits} --trainer.max_stepz 1", "--trainer.max_stepz is not a setting of the trainer; did you mean"),
        ("fit -c {digits} -trainer.max_steps=1", "-trainer.max_steps is not an option of fit; did you mean --trainer"),
        ("predict -c {digits} --ckpth_path x", "--ckpth_path is not an option of predict; did you mean --ckpt_path?"),
        (
            "fit -c {digits} --verbose 0",
            "--verbose is not an option of fit; there are --ckpt_path, --data, --model",
        ),
        ("fit -c {digits} --model.learning_rat.peak 1", "--model.learning_rat.peak: DiffusionModule has no argument"),
        ("fit -c {digits} --data.batch_sise=1", "Digits has no argument batch_sise; did you mean batch_size?"),
        ("gallery a b --sede 1", "--sede is not an option of gallery; did you mean --seed?"),
        ("encode a b --vea.path x", "--vea.path is not an option of encode; did you mean --vae.path?"),
        ("sweep a --out b", "sweep needs SEARCH: file of the settings that vary"),
        ("sweep --config none.yaml", "none.yaml does not exist; expected a YAML file"),
        (
            "tune configs none.yaml --budget 1 --out b",
            "none.yaml does not exist; expected file of the settings that vary",
        ),
        ("report config", "config does not exist (did you mean configs?); expected"),
        (
            "score none --against nowhere/real",
            "none does not exist; expected folders, zip archives or tar shards of images, or npz archives with x or "
            "arr_0; nowhere/real does not exist; expected reference",
        ),
        ("compare configs doc --against tests", "doc does not exist (did you mean docs?); expected"),
        ("score configs", "score needs --against: reference: samples in one of these forms, or a file of"),
        (
            "gallery configs confgis/guidance",
            "confgis/guidance does not exist (did you mean configs/guidance?); expected",
        ),
        ("gallery configs configs none", "none does not exist; expected files such as configs/guidance/pag.yaml"),
        (
            "sweep configs configs/search/digits.yaml --out o --configs none.yaml",
            "none.yaml does not exist; expected files laid over",
        ),
        ("report a b c", "report takes RUN, but 3 words are given"),
        ("fit -c {digits} stray", "'stray' belongs to no option; expected --KEY VALUE"),
        ("fit -c {digits} {digits}", "belongs to no option; expected -c before each config"),
        ("fit -c {digits} --trainer none.yaml", "none.yaml does not exist; expected a YAML file"),
        ("fit", "fit needs a config or the folder of a run"),
        ("fit configs/digits/{missing}", "mian.yaml does not exist (did you mean configs/digits/main.yaml?)"),
        ("fit -c confgis/digits/{missing}", "does not exist (did you mean configs/digits/main.yaml?); expected a YAML"),
        (
            "report confgis/digit/main",
            "confgis/digit/main does not exist (did you mean configs/digits/main.yaml?)",
        ),
        ("sweep confgis/digits none.yaml --out o", "does not exist (did you mean configs/digits?); expected folder"),
        ("fit -c configs/digits", "configs/digits is a folder; expected a YAML file"),
        ("fit configs", "configs holds no config.yaml; expected the folder of a run"),
        ("validate config", "config does not exist (did you mean configs?); expected"),
        (
            "fit -c {digits} -c configs/search/digits.yaml",
            "line 5: unknown keys images, average, evaluation, axes, block, blocks, objectives; fit has",
        ),
    ],
)
def test_typing_errors_are_one_sentence(call: Call, words: str, message: str) -> None:
    status, said = call(*words.format(digits=DIGITS, missing="mian.yaml").split())
    assert status in (1, 2) and message in said and len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"modle: {}\n", "wrong.yaml, line 1: unknown key modle; did you mean model?"),
        (b"guidances: {}\n", "line 1: unknown key guidances; did you mean model.init_args.guidances?"),
        (b"trainer:\n  max_stepz: 1\n", "line 2: unknown key trainer.max_stepz; did you mean trainer.max_steps?"),
        (b"base: good.yaml\ntrainer: {}\ntrainer: {}\n", "line 3: duplicate key 'trainer' (first defined on line 2)"),
        (b"base: bad.yaml\n", "bad.yaml, line 1: unknown key moddel; did you mean model?"),
        (
            b"model: {class_path: DiffusionModule, init_args: {label_dropuot: 1}}\n",
            "line 1: model.init_args.label_dropuot: DiffusionModule has no argument label_dropuot; did you mean",
        ),
        (b"base: goood.yaml\n", "base goood.yaml does not exist (did you mean good.yaml?); expected a file relative"),
        (b"a: [\n", "wrong.yaml is not valid YAML: line 2, column 1: while parsing a flow node, did not find"),
        (b"a: \xff\n", "wrong.yaml is not valid YAML: byte 3 is not UTF-8; expected a text file"),
        (b"", "wrong.yaml holds no keys; expected keys and values"),
        (b"- 1\n", "wrong.yaml holds no keys; expected keys and values"),
    ],
)
def test_wrong_configs_are_named_with_the_line(call: Call, text: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_bytes(text)
    (tmp_path / "good.yaml").write_text("seed_everything: 1\n")
    (tmp_path / "bad.yaml").write_text("moddel: {}\n")
    status, said = call("fit", "-c", "wrong.yaml", folder=tmp_path)
    assert status in (1, 2) and message in said and len(said.splitlines()) == 1
    assert call("fit", "-c", "~/wrong.yaml", folder=tmp_path)[1].replace(f"{tmp_path}/", "") == said
    assert call("fit", "--config=~/wrong.yaml", folder=tmp_path)[1].replace(f"{tmp_path}/", "") == said


def test_all_mistakes_are_named_at_once(call: Call, tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text(
        "modle: {}\ntrainer: {max_stepz: 1}\nmodel: {class_path: DiffusionModule, init_args: {label_dropuot: 1}}\n"
    )
    status, said = call("fit", "-c", "wrong.yaml", "--dta.seed", 1, "--model.sede=3", folder=tmp_path)
    head, *rest = said.splitlines()
    assert status == 2 and head == "lightning-guide: error: 5 mistakes:"
    for line, mistake in zip(rest, ("--dta.seed", "modle", "trainer.max_stepz", "label_dropuot", "sede"), strict=True):
        assert line.startswith("- ") and mistake in line and "; did you mean " in line
    assert rest[-1].endswith(" (lightning-guide fit --help)")
    assert ": 2 mistakes:\n- --sede" in call("gallery", "a", "b", "--sede", 1, "--ot", 2)[1]


def test_folder_of_a_run_is_its_config_and_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("seed_everything: 1\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    opened = ["-c", "run/config.yaml", "--trainer.default_root_dir=run"]
    for name in ("fit", "validate", "test", "predict"):
        assert answer([name, "run", "--seed_everything=2"]) == [name, *opened, "--seed_everything=2"]
        assert answer([name, "run/config.yaml"]) == [name, *opened[:2]]
    page = ["report", f"{tmp_path}/run", f"--out={tmp_path}/page.html"]
    assert answer(["report", "~/run", "--out=~/page.html"]) == page
    for name in ("a.yaml", "b"):
        (tmp_path / name).touch()
    listed = ["gallery", "run", '["a.yaml", "b"]', "--seed", "1"]
    assert answer(["gallery", "run", "--seed", "1", "a.yaml", "b"]) == listed
    assert answer(["report", "run", "--figures", "a"])[2:] == ["--figures", '["a"]']
    assert answer(["reconstruct", "run", "1", "--images=1/8"])[2:] == ["[1]", "--images=[1/8]"]
    assert answer(["gallery", "run", "[a.yaml]"]) == ["gallery", "run", "[a.yaml]"]
    assert answer(["reconstruct", "run", "0.03", "0.1"]) == ["reconstruct", "run", "[0.03, 0.1]"]
    assert answer(["validate", "~/run"])[2] == f"{tmp_path}/run/config.yaml"


def test_options_in_the_help_exist() -> None:
    for name, options in OPTIONS.items():
        words = [option.split()[0].partition("+")[0] for option in options if option.startswith("--")]
        assert answer([name, "-c", DIGITS, *(word for word in words if word != "--help")])


def test_searches_of_the_package_are_found_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    words = ["sweep", "run", "configs/search/digits.yaml", "--out", "out"]
    assert answer(words) == words
