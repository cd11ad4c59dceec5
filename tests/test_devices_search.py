"""Searches on the emulated device: the scores of the CPU, no mixed devices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.lib.emulated_device import EmulatedDevice
from tests.devices import unexplained
from tests.searches import search

WEIGHTS: dict[str, Any] = {"axes": {"weight": {"path": "guidance.init_args.weight", "values": [2, 3]}}, "blocks": 2}
DEVICE = {"accelerator": "auto", "strategy": {"class_path": "scripts.lib.emulated_accelerator.EmulatedStrategy"}}


def numbers(value: Any) -> Any:
    """The scores in a file of results, without times."""
    if isinstance(value, dict):
        return {key: numbers(each) for key, each in value.items() if "seconds" not in key and key != "search"}
    if isinstance(value, list):
        return {str(i): numbers(each) for i, each in enumerate(value)}
    return pytest.approx(value, rel=1e-2, abs=1e-3) if isinstance(value, float) else value


@pytest.mark.parametrize(
    ("kind", "words", "file"),
    [
        pytest.param("sweep", [], "results.json", marks=pytest.mark.slow),
        pytest.param("tune", ["--budget", "144"], "tune.json", marks=pytest.mark.slow),
    ],
)
def test_search_finds_what_it_finds_on_the_cpu(search_folder: Path, kind: str, words: list[str], file: str) -> None:
    """The tuner's last candidates race on fresh samples."""
    objectives = {"objectives": {"fd": "lowest"}} if kind == "tune" else {}
    expected = search(search_folder, kind, "cpu", *words, changes=WEIGHTS | objectives)
    (search_folder / "trainer.yaml").write_text(yaml.safe_dump({"trainer": DEVICE}))
    words = [*words, "--configs", f"[{search_folder / 'trainer.yaml'}]"]
    with EmulatedDevice() as device:
        found = search(search_folder, kind, "device", *words, changes=WEIGHTS | objectives)
    assert device.kernels > 1000
    assert not unexplained(device.waits)
    read = [json.loads((folder / file).read_text()) for folder in (found, expected)]
    for content in read:
        content.pop("statements", None)
    assert read[0].keys() == read[1].keys() and len(read[0]) >= 2
    assert without_search(read[0]) == numbers(read[1])


def without_search(value: Any) -> Any:
    """The same without marks of tolerance."""
    if isinstance(value, dict):
        return {key: without_search(each) for key, each in value.items() if "seconds" not in key and key != "search"}
    return {str(i): without_search(each) for i, each in enumerate(value)} if isinstance(value, list) else value
