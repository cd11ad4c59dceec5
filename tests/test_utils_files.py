"""YAML files: everything the config parser accepts is read, except duplicate keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_guide.utils.files import read_node, read_one, read_yaml


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ('{\n\t"a": 1,\n\t"b": [2]\n}', {"a": 1, "b": [2]}),  # JSON indented with tabs
        ("a: 1\t# one\nb: 2\t\n", {"a": 1, "b": 2}),
        ("x: &x {a: 1}\ny: &y {b: 2}\nz:\n  <<: *x\n  <<: *y\n", {"x": {"a": 1}, "y": {"b": 2}, "z": {"a": 1, "b": 2}}),
        ("x: &x {a: 1}\ny: *x\nz: {<<: *x, a: 2}\n", {"x": {"a": 1}, "y": {"a": 1}, "z": {"a": 2}}),
        ("1: a\n'2': b\n", {"1": "a", "2": "b"}),
    ],
)
def test_reads_what_the_config_parser_accepts(text: str, expected: Any, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    read_one(tmp_path / "config.yaml")
    assert read_yaml(tmp_path / "config.yaml") == expected


def test_reading_nodes_ignores_values(tmp_path: Path) -> None:
    for text in ("run: 2026-21-11\n", "a: &a {b: *a}\n"):  # no date; a recursive mapping
        (tmp_path / "config.yaml").write_text(text)
        assert isinstance(read_node(tmp_path / "config.yaml"), yaml.MappingNode)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\n'a': 3\n", "config.yaml, line 3: duplicate key 'a' .first defined on line 1."),
        ("- x:\n  - {k: 1,\n     k: 2}\n", "config.yaml, line 3: duplicate key 'k' .first defined on line 2."),
        ("a: [", "config.yaml is not valid YAML"),
        ("a:\n\tb: 1\n", "config.yaml is not valid YAML: .* cannot start any token"),
        ("a: 1\n---\nb: 2\n", "config.yaml is not valid YAML: line 2, column 1: expected a single document"),
    ],
)
def test_errors_name_the_file(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    for read in (read_node, read_one, read_yaml):
        with pytest.raises(ValueError, match=message):
            read(tmp_path / "config.yaml")
