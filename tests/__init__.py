"""Tests of the library. A package, so that a `tests` module installed by another distribution does not shadow it."""
