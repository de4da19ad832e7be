"""Metrics as pure functions, and how tasks declare them."""
