"""A module around another one, for networks that read attributes of their blocks and embeddings."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["Around"]


class Around(nn.Module):
    """Base of stand-ins that pass for the module `inner`: what they do not have themselves is its attribute."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        """A parameter or submodule of this module, or else an attribute of the inner one."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)
