"""Stable Diffusion's parts as one module of any size, and its checkpoints."""
