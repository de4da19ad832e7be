"""The pipeline: a graph of pure stages, the engine that runs what is missing, and its progress display."""
