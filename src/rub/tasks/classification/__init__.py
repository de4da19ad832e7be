"""The classification task: data, networks, unlearning methods, attacks, membership inference, metrics."""
