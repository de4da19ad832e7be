"""What looks at generated images."""
