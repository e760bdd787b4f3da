"""Claims of the papers on images."""
