"""Guidances on trained models: weights, guiders, methods and attention layers."""
