"""How models are trained, whatever the task: contexts, batches, saliency, devices."""
