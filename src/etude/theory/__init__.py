"""What theory says of networks, as functions that take a user's own depth, width, activation and data."""
