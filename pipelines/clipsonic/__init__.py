"""CLIPSonic: sounds learned from pictures alone, asked for in words (arXiv 2306.09635)."""
