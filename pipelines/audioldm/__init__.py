"""AudioLDM: sounds learned from sounds alone, asked for in words (arXiv 2301.12503)."""
