"""Examples, benchmarks and studies. Each runs from the root of the repository as `python -m scripts.FOLDER.NAME`."""
