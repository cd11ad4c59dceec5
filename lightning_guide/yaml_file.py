"""YAML files that users write: plain data, in which no key is given twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

__all__ = ["read_yaml"]


class _EveryKeyOnce(yaml.SafeLoader):
    """Plain data; a key that stands twice in one mapping is an error, not the last of both."""

    def compose_mapping_node(self, anchor: dict[str, yaml.Node]) -> yaml.MappingNode:
        """As of SafeLoader, before anything is merged.

        Raises:
            ValueError: naming the line and the key.
        """
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            name, line = (key.tag, str(key.value)), key.start_mark.line + 1
            if name in lines:
                raise ValueError(f"line {line}: {key.value!r} stands in line {lines[name]} already; expected it once")
            lines[name] = line
        return node


def read_yaml(path: str | Path) -> Any:
    """What a YAML file holds.

    Raises:
        ValueError: naming the file, if it is no YAML, or a key stands twice in one mapping.
        OSError: if it cannot be read.
    """
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), _EveryKeyOnce)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    except ValueError as error:
        raise ValueError(f"{path}, {error}") from None
