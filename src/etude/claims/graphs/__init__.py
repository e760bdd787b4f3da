"""Claims of papers on graphs and relational data."""
