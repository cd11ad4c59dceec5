"""The key `base` of configs: files are merged in order, by the command line and by the commands that read YAML."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lightning_guide.cli import main
from lightning_guide.cli.configs import config_mistakes
from lightning_guide.commands.guidance_files import read_guidances
from lightning_guide.search.config import read_search
from lightning_guide.utils.files import read_yaml
from tests.test_configs import CONFIGS


def write(folder: Path, **files: str) -> None:
    """Write `NAME.yaml` files."""
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)


def test_later_files_win_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    write(tmp_path / "shared", one="a: 1\nmany: [1, 2]\nx: &x {u: 1}\ny: *x\n", two="base: one.yaml\nb: {c: 1, d: 2}\n")
    write(tmp_path, three="b: {d: 3, e: 4}\n", top="base: [shared/two.yaml, three.yaml]\nmany: [3]\ny: {u: 2}\n")
    expected = {"a": 1, "many": [3], "x": {"u": 1}, "y": {"u": 2}, "b": {"c": 1, "d": 3, "e": 4}}
    assert read_yaml(tmp_path / "top.yaml") == expected


def test_another_class_replaces_the_arguments(tmp_path: Path) -> None:
    write(tmp_path, base="x: {class_path: A, init_args: {n: 1}}\ny: {class_path: A, init_args: {n: 1}}\n")
    write(tmp_path, top="base: base.yaml\nx: {class_path: B}\ny: {class_path: package.A, init_args: {m: 2}}\n")
    content = read_yaml(tmp_path / "top.yaml")
    assert content["x"] == {"class_path": "B"} and content["y"]["init_args"] == {"n": 1, "m": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "base: missing.yaml\n",
            r"top.yaml: base .*missing.yaml does not exist; expected a file relative to",
        ),
        ("base: [other.yaml, other.yaml]\n", "top.yaml: base names other.yaml twice"),
        ("base: circle.yaml\n", "circle.yaml: base .*top.yaml inherits from this file"),
        ("base: {a: 1}\n", "top.yaml: base is .*; expected a file or a list of files"),
        ("base:\n", "top.yaml: base is .*; expected a file or a list of files"),
        ("base: list.yaml\n", r"list.yaml is the base of .*top.yaml, but holds \[1\]"),
        ("base: double.yaml\n", "double.yaml, line 2: duplicate key 'a' "),
    ],
)
def test_errors_are_one_line(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, top=text, other="a: 1\n", circle="base: top.yaml\n", list="- 1\n", double="a: 1\na: 2\n")
    with pytest.raises(ValueError, match=message):
        read_yaml(tmp_path / "top.yaml")
    if "list.yaml" not in text:  # found by the parser
        with pytest.raises(ValueError, match=message):
            list(config_mistakes("fit", ["-c", str(tmp_path / "top.yaml")]))
    monkeypatch.setenv("LIGHTNING_GUIDE_TRACEBACK", "")
    with pytest.raises(SystemExit) as left:
        main(["fit", "-c", str(tmp_path / "top.yaml")])
    written = str(left.value.code) + capsys.readouterr().err
    assert "lightning-guide: error: " in written and "Traceback" not in written


def test_command_line_merges_the_base_and_keeps_types(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Text stays text and numbers stay numbers; a later config has precedence."""
    write(tmp_path, low="base: high.yaml\ntrainer: {gradient_clip_val: 1e-3, default_root_dir: '2026-01-01'}\n")
    write(tmp_path, high=f"base: {CONFIGS / 'digits/small.yaml'}\nseed_everything: 7\n")
    write(tmp_path, last="seed_everything: 8\nmodel: {init_args: {heldout_sigmas: [.5, 1.0e-3]}}\n")
    words = [word for name in ("low", "last") for word in ("-c", str(tmp_path / f"{name}.yaml"))]
    with pytest.raises(SystemExit) as left:
        main(["fit", *words, "--print_config"])
    assert left.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert "base" not in printed and printed["seed_everything"] == 8
    assert printed["trainer"]["default_root_dir"] == "2026-01-01" and printed["trainer"]["gradient_clip_val"] == 0.001
    assert printed["model"]["init_args"]["heldout_sigmas"] == [0.5, 0.001]
    assert printed["model"]["class_path"].endswith(".DiffusionModule")


def test_files_of_searches_and_guidances_may_have_a_base(tmp_path: Path) -> None:
    write(tmp_path, search=f"base: {CONFIGS / 'search/autoguidance.yaml'}\nblocks: 3\naxes: {{weight: {{prior: 3}}}}\n")
    search = read_search(tmp_path / "search.yaml")
    assert search.blocks == 3 and [axis.prior for axis in search.axes] == ["1/3.5", 0.1, 3]
    write(tmp_path, cfg=f"base: {CONFIGS / 'guidance/cfg.yaml'}\n")
    with (tmp_path / "cfg.yaml").open("a") as file:
        file.write("model: {init_args: {guidances: {cfg: {init_args: {weight: 4}}}}}\n")
    guidances = read_guidances([str(tmp_path / "cfg.yaml")])
    assert guidances == {"cfg": {"class_path": "ClassifierFreeGuidance", "init_args": {"weight": 4}}}
