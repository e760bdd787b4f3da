"""Deep-learning papers as composable PyTorch parts, each proven by claims that run."""

__version__ = "0.1.0"
