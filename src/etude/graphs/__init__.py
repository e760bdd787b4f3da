"""Learning on graphs and relational data."""
