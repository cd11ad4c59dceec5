"""Accuracy of the tuner at a small budget."""
