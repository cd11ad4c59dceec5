"""The emulated device as an accelerator of Lightning, so that whole fits and evaluations run on it."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.strategies import SingleDeviceStrategy

from scripts.lib.emulated_device import DEVICE

__all__ = ["EmulatedAccelerator", "EmulatedStrategy"]


class EmulatedAccelerator(Accelerator):
    """One emulated device."""

    def setup_device(self, device: torch.device) -> None:
        """Do nothing: there is one device."""

    def get_device_stats(self, device: torch.device | str | int) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def teardown(self) -> None:
        """Do nothing: nothing is held."""

    @staticmethod
    def parse_devices(devices: Any) -> int:
        """Return one."""
        return 1

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        """Return the device."""
        return [DEVICE]

    @staticmethod
    def auto_device_count() -> int:
        """Return one."""
        return 1

    @staticmethod
    def is_available() -> bool:
        """Return whether there is a device, as inside of ``with EmulatedDevice()``."""
        return torch.accelerator.is_available()

    @staticmethod
    def name() -> str:
        """Return the type of the device."""
        return DEVICE.type


class EmulatedStrategy(SingleDeviceStrategy):
    """One process on the device, as ``Trainer(accelerator="auto", strategy=EmulatedStrategy())``."""

    def __init__(self) -> None:
        super().__init__(DEVICE, accelerator=EmulatedAccelerator())
