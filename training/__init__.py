"""How every shipped lite weight was made: one recipe a weight (see README.md in this folder)."""
