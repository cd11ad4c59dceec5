"""Samplers against exact trajectories."""
