"""Studies, one folder for each topic: scripts, and a README.md with the recorded results."""
