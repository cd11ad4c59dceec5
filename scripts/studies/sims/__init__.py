"""Self-improvement on own samples: SIMS, Neon and self-consuming loops."""
