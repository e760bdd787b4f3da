"""Claims of papers on diffusion models."""
