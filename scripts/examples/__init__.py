"""Short programs that use the library from Python."""
