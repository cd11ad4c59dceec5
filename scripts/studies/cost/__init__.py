"""Quality for less: FD against network calls."""
