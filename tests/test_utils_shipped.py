"""Configs of the package: found from any folder, behind the user's own, and written out by init."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lightning_guide.cli import main
from lightning_guide.commands.guidance_files import read_guidances
from lightning_guide.utils.files import read_yaml
from lightning_guide.utils.shipped import find_config, shipped_configs, with_shipped_configs

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    """Return the config that a command line prints."""
    with pytest.raises(SystemExit) as left:
        main([*words, "--print_config"])
    assert not left.value.code, capsys.readouterr().err
    content: dict = yaml.safe_load(capsys.readouterr().out)
    return content


def test_a_config_is_found_in_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    """Under each spelling of the option, and with files that it inherits from."""
    whole = ["fit", "-c", "configs/digits/main.yaml", "--config=configs/shrink.yaml"]
    config = printed(capsys, *whole)
    assert config["trainer"]["max_steps"] == 2 and config["trainer"]["default_root_dir"] == "runs/digits/main"
    attached = with_shipped_configs(
        ["-cconfigs/shrink.yaml", "--config", "configs/ddp.yaml", "--out", "configs/search"]
    )
    assert attached == [
        f"-c{CONFIGS / 'shrink.yaml'}",
        "--config",
        str(CONFIGS / "ddp.yaml"),
        "--out",
        "configs/search",
    ]


def test_a_file_of_the_working_folder_comes_first(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (elsewhere / "configs").mkdir()
    (elsewhere / "configs" / "shrink.yaml").write_text("trainer: {max_steps: 3}\n")
    config = printed(capsys, "fit", "-c", "configs/digits/small.yaml", "-c", "configs/shrink.yaml")
    assert config["trainer"]["max_steps"] == 3 and config["trainer"]["log_every_n_steps"] != 1


def test_a_base_may_be_one_of_the_package(elsewhere: Path) -> None:
    (elsewhere / "own").mkdir()
    (elsewhere / "own" / "mine.yaml").write_text("base: [configs/base/edm.yaml]\ntrainer: {max_steps: 3}\n")
    content = read_yaml("own/mine.yaml")
    assert content == read_yaml(CONFIGS / "base" / "edm.yaml") | {"trainer": content["trainer"]}
    (elsewhere / "configs").mkdir()  # not relative to the working folder, but to the file's
    (elsewhere / "configs" / "Own.yaml").write_text("a: 1\n")
    (elsewhere / "own" / "mine.yaml").write_text("base: configs/Own.yaml\n")
    with pytest.raises(ValueError, match=r"own/mine.yaml: base own/configs/Own.yaml does not exist"):
        read_yaml("own/mine.yaml")


def test_guidances_and_searches_are_found_in_the_package() -> None:
    assert read_guidances(["configs/guidance"]) == read_guidances([str(CONFIGS / "guidance")])
    assert read_yaml("configs/search/autoguidance.yaml")["axes"]


@pytest.mark.parametrize("path", ["configs/None.yaml", "digits/main.yaml", "model: " + 300 * "x", "", "configs"])
def test_everything_else_is_left_as_it_is(path: str) -> None:
    assert with_shipped_configs(["-c", path]) == ["-c", path]
    if path != "configs":
        assert find_config(path) == Path(path)


def test_a_missing_config_is_named_as_it_was_written() -> None:
    with pytest.raises(
        SystemExit, match="configs/digits/Main.yaml does not exist .did you mean .*configs/digits/main.yaml"
    ):
        main(["fit", "-c", "configs/digits/Main.yaml"])


def test_init_writes_configs_that_are_used(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["init", "configs"])
    assert "configs/digits/main.yaml" in capsys.readouterr().out
    written = {path.relative_to("configs"): path.read_bytes() for path in Path("configs").rglob("*.yaml")}
    assert written == {path.relative_to(CONFIGS): path.read_bytes() for path in CONFIGS.rglob("*.yaml")}
    base = elsewhere / "configs" / "base" / "edm.yaml"
    base.write_text(base.read_text() + "edited: true\n")
    assert read_yaml("configs/digits/main.yaml")["edited"]


@pytest.mark.parametrize("held", ["file", "folder"])
def test_init_overwrites_nothing(held: str, elsewhere: Path) -> None:
    target = elsewhere / "mine"
    if held == "folder":
        target.mkdir()
        (target / "notes.txt").write_text("mine")
    else:
        target.write_text("mine")
    with pytest.raises(SystemExit, match="nothing is overwritten" if held == "folder" else "mine is a file"):
        main(["init", str(target)])
    assert [path.read_text() for path in elsewhere.rglob("*") if path.is_file()] == ["mine"]


def test_init_fills_an_empty_folder(elsewhere: Path) -> None:
    (elsewhere / "mine").mkdir()
    main(["init", "mine"])
    assert read_yaml("mine/digits/main.yaml") == read_yaml(shipped_configs() / "digits" / "main.yaml")
