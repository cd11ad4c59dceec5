"""`python -m lightning_guide`, the same as `lightning-guide`."""

from __future__ import annotations

from lightning_guide.cli import main

if __name__ == "__main__":
    main()
