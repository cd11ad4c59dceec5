"""Needs of a run: what its parts will use later is checked before it begins, and all that is missing is listed at once.

Whatever needs something has a method `missing`, which yields one sentence for each need that is not met. It raises
nothing, changes nothing and costs little: a file is opened, a network loaded, one sample drawn.

- a pretrained network: `missing()`, its weights;
- a metric: `missing(sample, count, reference)`, enough samples and real examples, statistics, fitting features;
- a callback: `missing(trainer, module)`, other callbacks, writable folders (`unwritable`);
- named evaluations: `GuidedEvaluations.missing`, which asks all of its parts; modules ask everything they hold.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import nn

from lightning_guide.utils.distributed import all_gather_objects, run_on_all_ranks
from lightning_guide.utils.errors import as_value_error
from lightning_guide.utils.recipe import HasRecipe

__all__ = ["HasNeeds", "MissingNeedsError", "attempt", "check_writable", "needs_of", "require", "unwritable"]


class MissingNeedsError(ValueError):
    """Error that lists everything that is missing, one sentence each.

    Attributes:
        sentences: the sentences.
    """

    def __init__(self, sentences: Iterable[str]) -> None:
        """List the `sentences`; the message of a single one is the sentence itself."""
        self.sentences = tuple(sentences)
        head = f"{len(self.sentences)} needs of this run are not met:"
        super().__init__(self.sentences[0] if len(self.sentences) == 1 else "\n- ".join([head, *self.sentences]))


@runtime_checkable
class HasNeeds(Protocol):
    """An object that checks by itself what it will use."""

    def missing(self) -> Iterator[str]:
        """Yield one sentence for each need that is not met."""


def require(find: Callable[[], Iterable[str]]) -> None:
    """Raise the sentences that `find` returns on any rank, each once, on every rank. Every rank must call this.

    Raises:
        MissingNeedsError: if there is one.
    """
    here: list[str] = []
    run_on_all_ranks(lambda: here.extend(find()))
    found = dict.fromkeys(sentence for sentences in all_gather_objects(here) for sentence in sentences)
    if found:
        raise MissingNeedsError(found)


def attempt(act: Callable[[], Any]) -> str | None:
    """Call `act` and return its error as a sentence, None if it has none."""
    try:
        with as_value_error():
            act()
    except ValueError as error:
        return " ".join(str(error).split())
    return None


def needs_of(*roots: Any) -> Iterator[str]:
    """Yield the needs of all objects within `roots`: submodules, arguments of recipes, items of containers."""
    seen: set[int] = set()

    def visit(value: Any) -> Iterator[str]:
        if id(value) in seen:
            return
        seen.add(id(value))
        if isinstance(value, HasNeeds):
            yield from value.missing()
        inside: list[Any] = list(value.values()) if isinstance(value, dict) else []
        inside += list(value) if isinstance(value, list | tuple) else []
        inside += list(value.children()) if isinstance(value, nn.Module) else []
        inside += list(value._arguments.values()) if isinstance(value, HasRecipe) else []
        for each in inside:
            yield from visit(each)

    yield from visit(list(roots))


def check_writable(folder: str | Path, who: str) -> None:
    """Refuse a folder that `who` cannot write, before work is done for it.

    Raises:
        ValueError: naming both.
    """
    for sentence in unwritable(folder, who):
        raise ValueError(f"{sentence}; expected a folder that can be written")


def unwritable(folder: str | Path, who: str) -> Iterator[str]:
    """Yield a sentence if `who` cannot write to `folder`, which need not exist yet."""
    place = Path(folder)
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        yield f"{who} writes to {folder}, but {place} is a file; expected a folder"
        return
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        yield f"{who} cannot write to {folder}: {error.strerror or error}"
