"""Image data sets: read, decoded, split."""
