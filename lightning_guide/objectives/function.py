"""Any function of torch, named by its import path, as an objective."""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor

from lightning_guide.objectives.objective import Objective

__all__ = ["TorchFunction"]


class TorchFunction(Objective):
    """f(x) = function(x, **arguments), say ``my_package.rewards.sharpness``: (B, *) -> (B,)."""

    def __init__(self, function: str, arguments: dict[str, Any] | None = None) -> None:
        """`function` is "package.module.name"; `arguments` are handed to it by name.

        Raises:
            ValueError: if it cannot be imported or called.
        """
        super().__init__()
        module, _, name = function.rpartition(".")
        try:
            self.function = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(
                f"the objective {function!r} cannot be imported ({error}); expected package.module.function"
            ) from None
        if not callable(self.function):
            raise ValueError(f"the objective {function!r} is a {type(self.function).__name__}; expected a function")
        self.arguments = arguments or {}

    def forward(self, x: Tensor) -> Tensor:
        """f (B,) of `x` (B, *)."""
        value: Tensor = self.function(x, **self.arguments)
        return value
