"""The command init: the configs that come with the package, written out to be edited."""

from __future__ import annotations

from pathlib import Path

from lightning_guide.utils.shipped import shipped_configs
from lightning_guide.utils.terminal import counted

__all__ = ["init"]


def init(folder: str) -> None:
    """Write the configs that come with the package to `folder`, to be edited; nothing is overwritten.

    Commands look for configs/... in the working folder first, then in the package: after `lightning-guide init configs`
    the commands of the documentation use the copies.

    Args:
        folder: new or empty folder, such as configs.

    Raises:
        ValueError: if the folder holds something already, or is a file.
        OSError: if it cannot be written.
    """
    target, source = Path(folder).expanduser(), shipped_configs()
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file; expected a new or empty folder")
    if target.is_dir() and (held := min((path.name for path in target.iterdir()), default=None)):
        raise ValueError(f"{target} holds {held} already; expected a new or empty folder: nothing is overwritten")
    files = sorted(path for path in source.rglob("*") if path.suffix in (".yaml", ".md"))
    for file in files:
        copy = target / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    print(f"{counted(len(files), 'file')} in {target}, such as {target / 'digits' / 'main.yaml'}")
