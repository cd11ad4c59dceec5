"""What the commands beside Lightning's own do, one file each; searches have a room of their own."""
