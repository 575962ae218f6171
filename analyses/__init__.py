"""Studies: each one file (or folder), read from top to bottom, through the public API only."""
