"""What searches over inputs share, whatever the task."""
