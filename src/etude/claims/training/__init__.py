"""Claims of the papers on training."""
