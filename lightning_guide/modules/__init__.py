"""LightningModules: diffusion training with guided evaluation, and what it is made of."""
