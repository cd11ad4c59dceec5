"""Models from elsewhere, read without trusting them, and ours for other tools."""
