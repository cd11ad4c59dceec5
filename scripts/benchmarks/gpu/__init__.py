"""The checks of `scripts.benchmarks.gpu_check`, one subject a file."""
