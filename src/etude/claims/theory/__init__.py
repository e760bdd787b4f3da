"""Claims of the papers of `etude.theory`."""
