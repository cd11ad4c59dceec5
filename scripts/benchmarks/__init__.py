"""Benchmarks: time and memory, as ratios measured side by side in one process; results in README.md."""
