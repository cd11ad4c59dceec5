"""Equal arguments of a class are parsed once, with the result of parsing them each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser

from lightning_guide.cli import main
from lightning_guide.utils.parser import Parser

CONFIG = Path(__file__).parents[1] / "configs/digits/main.yaml"
WORDS = ["fit", "-c", str(CONFIG), "--model.evaluations.cfg.sampler.init_args.grid.init_args.num_steps", "5"]


def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    with pytest.raises(SystemExit):
        main([*WORDS, "--print_config"])
    return yaml.safe_load(capsys.readouterr().out)


def test_equal_arguments_are_parsed_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    parsed: list[object] = []
    plain = ArgumentParser.parse_object

    def counted(self: ArgumentParser, *args: Any, **kwargs: Any) -> Any:
        parsed.append(args)
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(ArgumentParser, "parse_object", counted)
    found, few = printed(capsys), len(parsed)
    monkeypatch.delattr(Parser, "parse_object")
    parsed.clear()
    assert found == printed(capsys) and few < len(parsed) / 2


def test_a_setting_of_one_of_two_equal_parts_is_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    evaluations = printed(capsys)["model"]["init_args"]["evaluations"]
    steps = {name: each["sampler"]["init_args"]["grid"]["init_args"]["num_steps"] for name, each in evaluations.items()}
    assert steps["cfg"] == 5 and steps["autoguidance"] == steps["unguided"] != 5
