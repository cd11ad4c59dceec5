"""Trials of damage: files that the product reads, mutated and read again."""
