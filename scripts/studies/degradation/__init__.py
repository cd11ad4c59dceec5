"""Synthetic degradations and their correction by guidance."""
