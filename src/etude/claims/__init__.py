"""The claims of each paper, in the rooms of their methods."""
