"""What the commands beside Lightning's own do, one file each."""
