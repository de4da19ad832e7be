"""Attacks on unlearned classifiers: searches for a probe near an image that brings the forgotten label back."""
