"""Papers on images."""
