"""Key layouts of published classifiers."""
