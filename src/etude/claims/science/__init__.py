"""Claims of the papers in `etude.science`."""
