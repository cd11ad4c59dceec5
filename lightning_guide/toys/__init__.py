"""Toy distributions whose density, score or limit is known exactly."""
