"""Diffusion models: how their denoising tasks share a network, and what their features say of an image."""
