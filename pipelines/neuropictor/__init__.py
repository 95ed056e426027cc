"""NeuroPictor: a map of the visual cortex steers a picture (arXiv 2403.18211)."""
