"""Objective from the import path of a function."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from torch import Tensor

from lightning_guide.objectives.energy import Objective

__all__ = ["TorchFunction"]


class TorchFunction(Objective):
    """Objective f(x) = function(x, **arguments), (B, *) -> (B,), such as ``my_package.rewards.sharpness``."""

    def __init__(self, function: str, arguments: dict[str, Any] | None = None) -> None:
        """Take the `function` "package.module.name" and its keyword `arguments`.

        Raises:
            ValueError: if it cannot be imported or called, or does not take these arguments.
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
        self.name, self.arguments = function, arguments or {}
        try:
            signature = inspect.signature(self.function)
        except ValueError:  # some functions of torch have no signature
            return
        try:
            signature.bind(None, **self.arguments)
        except TypeError as error:
            raise self._arguments_error(error) from None

    def value(self, x: Tensor) -> Tensor:
        """f (B,) of `x` (B, *).

        Raises:
            ValueError: if the function raises TypeError for its arguments.
        """
        try:
            value: Tensor = self.function(x, **self.arguments)
        except TypeError as error:
            raise self._arguments_error(error) from error
        return value

    def _arguments_error(self, error: TypeError) -> ValueError:
        named = ", ".join(self.arguments) or "none"
        return ValueError(
            f"the objective {self.name!r} does not take these arguments (x and, by name: {named}): "
            + " ".join(str(error).split())
        )
