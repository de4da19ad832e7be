"""The text-to-image task: unlearn concepts from a diffusion model, then search prompts that draw them again."""
