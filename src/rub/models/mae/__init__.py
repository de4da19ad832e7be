"""The masked autoencoder and its checkpoints."""
