"""Tests, flat: a package of its own, so that the `tests` which other packages install do not stand in its place."""
