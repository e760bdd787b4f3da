"""What comes after transformers? Mixers of sequences behind one interface.

Schneider, "What comes after transformers? A selective survey connecting ideas in deep learning", 2024,
arXiv:2408.00386.
"""
