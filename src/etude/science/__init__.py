"""Papers that bring deep learning to the sciences."""
