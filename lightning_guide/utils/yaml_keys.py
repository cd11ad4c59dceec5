"""Keys of YAML mappings as they are written: names of evaluations may be ``off``, ``1.5`` or ``null``.

YAML reads such keys as a bool, a float and None. Here every key is text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import yaml

__all__ = ["MERGE", "keep_keys", "mapping_nodes", "quote_keys"]


_TEXT = "tag:yaml.org,2002:str"
MERGE = "tag:yaml.org,2002:merge"  # a merge key may occur twice: neither of the merges is lost

# what any loader might read as a bool, None, number or time, before a colon
_OTHER = re.compile(
    r"(?:^|[\s{,\[?-])(~|null|true|false|yes|no|on|off|y|n|[-+.]?[.\d][^\s{}\[\],\"']*)\s*:", re.I | re.M
)


def mapping_nodes(root: yaml.Node) -> Iterator[yaml.MappingNode]:
    """Yield every mapping below `root` once, in the order of the document."""
    seen, waiting = set[int](), [root]
    while waiting:
        node = waiting.pop()
        if id(node) in seen or isinstance(node, yaml.ScalarNode):
            continue
        seen.add(id(node))  # an alias is the node itself, and may lead back to it
        if isinstance(node, yaml.MappingNode):
            yield node
            waiting += [value for _, value in reversed(node.value)]
        else:
            waiting += reversed(node.value)


def keep_keys(root: yaml.Node) -> None:
    """Make every key below `root` text, in place; merge keys (``<<``) stay."""
    for node in mapping_nodes(root):
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != MERGE:
                key.tag, key.style = _TEXT, '"'


def quote_keys(text: str) -> str:
    """Return the YAML `text` with its keys in quotes, if one might be read as something else than text.

    Examples:
        >>> quote_keys("{off: 1}"), quote_keys("a: off")
        ('{"off": 1}\\n', 'a: off')
    """
    if not _OTHER.search(text):
        return text
    try:
        root = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError:  # left to the parser
        return text
    if root is None:
        return text
    keep_keys(root)
    written: str = yaml.serialize(root, Dumper=yaml.SafeDumper, allow_unicode=True, width=1 << 16)
    return written
