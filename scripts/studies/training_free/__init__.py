"""Training-free guidance: experiments with exact denoisers, and comparisons on trained models."""
