"""Gradient guidance: optimization of an objective by sampling."""
