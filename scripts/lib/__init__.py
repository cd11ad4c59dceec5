"""Helpers shared by studies and benchmarks."""
