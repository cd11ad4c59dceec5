"""EDM-style diffusion models in PyTorch Lightning, guided by their own younger, differently averaged selves."""

__version__ = "0.1.0"
