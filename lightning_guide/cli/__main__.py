"""`python -m lightning_guide.cli`, for launchers such as torchrun that start a module."""

from __future__ import annotations

from lightning_guide.cli import main

if __name__ == "__main__":
    main()
