"""Claims of the papers on sequences."""
