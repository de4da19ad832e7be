"""Audits of checkpoints that RUB did not make."""
