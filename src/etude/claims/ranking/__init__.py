"""Claims of papers on ranking: search and recommendation."""
