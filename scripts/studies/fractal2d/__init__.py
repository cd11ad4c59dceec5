"""The 2D fractal of Karras et al. 2024: autoguidance and CFG under exact scores."""
