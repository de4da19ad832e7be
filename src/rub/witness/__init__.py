"""Stored probes that recover, and their checks."""
