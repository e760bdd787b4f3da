"""Claims of papers on neural architecture search."""
