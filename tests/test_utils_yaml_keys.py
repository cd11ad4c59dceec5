"""Names in configs are what was written, and shipped ones can be addressed on the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_guide.cli import main
from lightning_guide.runs import Run
from lightning_guide.search.config import read_search
from lightning_guide.utils.files import read_one
from lightning_guide.utils.yaml_keys import quote_keys

ROOT = Path(__file__).resolve().parents[1]
ODD = ["off", "yes", "1.5", "null", "~", "2", "0x1F", "2024-01-31", "1e3", ".inf", "1_000", "12:30:00"]
CONFIG = """
base: [CONFIGS/base/edm.yaml, CONFIGS/base/callbacks.yaml]
trainer: {default_root_dir: RUN, accelerator: cpu, max_steps: 2, val_check_interval: 2, logger: false}
model:
  init_args:
    denoiser: {init_args: {network: {init_args: {data_shape: [1, 8, 8], model_channels: 8, channel_mult: [1],
                                                num_blocks: 1, attention_resolutions: []}}}}
    metrics: {no: {class_path: FrechetDistance, init_args: {extractor: {class_path: RawPixels}}}}
    evaluations:
      unguided: &few
        num_samples: 4
        batch_size: 4
        sampler: {class_path: Heun, init_args: {grid: {class_path: KarrasGrid, init_args: {num_steps: 2}}}}
      off: {<<: *few}
      1.5: {<<: *few}
data: {class_path: Digits, init_args: {batch_size: 8}}
"""


@pytest.mark.parametrize("name", ODD)
def test_keys_are_text_as_it_was_written(name: str, tmp_path: Path) -> None:
    for text in (f"{name}: off\nother: 1e-3", f"{{{name}: off, other: 1e-3}}", f"- {name}: off\n  other: 1e-3"):
        found: Any = yaml.safe_load(quote_keys(text))
        (mapping,) = found if isinstance(found, list) else [found]
        assert list(mapping) == [name, "other"] and mapping[name] is False and mapping["other"] == "1e-3"
    (tmp_path / "keys.yaml").write_text(f"{name}: &a {{b: 1}}\nmore: {{<<: *a, {name}: off}}\n")
    assert read_one(tmp_path / "keys.yaml") == {name: {"b": 1}, "more": {"b": 1, name: False}}


def test_text_without_such_keys_is_left_alone() -> None:
    for text in ("a: off\nb: {c: 1.5}", "# 1.5: x", "a: 'it is 12:30'", "[1, 2]", "off", "", "a: [b: ", "1.5: [a"):
        assert yaml_or_none(quote_keys(text)) == yaml_or_none(text) or text.startswith("1.5")
    assert quote_keys("a: {b: c}") == "a: {b: c}"


def yaml_or_none(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return "broken"


def test_the_same_key_in_two_spellings_is_a_duplicate(tmp_path: Path) -> None:
    (tmp_path / "twice.yaml").write_text("off: 1\n'off': 2\n")
    with pytest.raises(ValueError, match="line 2: duplicate key 'off'"):
        read_one(tmp_path / "twice.yaml")


def test_axes_of_a_search_have_the_names_that_were_written(tmp_path: Path) -> None:
    path = tmp_path / "search.yaml"
    path.write_text("axes: {on: {path: guidance.init_args.weight, values: {off: 1.0, 1.50: 1.5}}}\n")
    (axis,) = read_search(path).axes
    assert (axis.name, axis.names) == ("on", ("off", "1.50"))


@pytest.mark.filterwarnings("ignore:.*samples are not finite")  # of an untrained network
def test_evaluations_may_be_called_off_and_1_5(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the config to the results, the saved config and the command line."""
    config = tmp_path / "odd.yaml"
    config.write_text(CONFIG.replace("CONFIGS", str(ROOT / "configs")).replace("RUN", str(tmp_path / "run")))
    main(["fit", "-c", str(config), "--model.evaluations.off.num_samples", "6"])
    results = yaml.safe_load((tmp_path / "run" / "report" / "metrics.json").read_text())
    assert list(results) == ["unguided", "off", "1.5"]
    assert [values["samples"] for values in results.values()] == [4, 6, 4]
    settings = Run(tmp_path / "run").settings
    assert list(settings["evaluations"]) == ["unguided", "off", "1.5"] and list(settings["metrics"]) == ["no"]


def names(node: Any, key: str = "") -> Iterator[str]:
    """Yield the names of all evaluations, guidances and metrics in a config."""
    if isinstance(node, dict):
        if key in ("evaluations", "guidances", "metrics", "axes"):
            yield from map(str, node)
        for name, value in node.items():
            yield from names(value, str(name))
    elif isinstance(node, list):
        for value in node:
            yield from names(value)


@pytest.mark.parametrize("config", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_names_can_be_addressed_on_the_command_line(config: Path) -> None:
    assert not [name for name in names(yaml.safe_load(config.read_text())) if "." in name or " " in name]
