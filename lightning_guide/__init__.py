"""Diffusion models in PyTorch Lightning, guided by their own younger or differently averaged selves."""

__version__ = "0.1.0"
