"""Posterior sampling against exact posteriors."""
