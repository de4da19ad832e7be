"""What a user asks for: suites, hyperparameters; validated before anything runs."""
