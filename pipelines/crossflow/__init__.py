"""CrossFlow: text evolves into a picture (arXiv 2412.15213)."""
