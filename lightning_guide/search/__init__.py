"""Searching the space of evaluations: sweeps over a grid, and a tuner that finds a good guider within a budget."""
