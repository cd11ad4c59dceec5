"""Commands that write datasets: `convert` and `encode`."""
