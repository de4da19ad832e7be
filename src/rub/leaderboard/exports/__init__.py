"""Formats of others that results are written in, one file each."""
