"""The image-to-image task: unlearn classes from a masked autoencoder that inpaints."""
