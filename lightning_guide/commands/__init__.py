"""Commands besides Lightning's own, one file each."""
