"""Attacks on unlearned masked autoencoders: searches for inputs that bring the original's reconstruction back.

An attack has the signature ``attack(target, images, budget, context, *, hyperparameters) -> Probes``: `target` is a
`Target` (the frozen unlearned model, the masks and the original's output), `images` the clean images, uint8
(N, C, H, W), `budget` a `Budget`, `context` an `AttackContext`. It returns deltas that are 0 on masked patches;
`rub.tasks.inpainting.attacks.harness.run_attack` runs it and decides what it found.
"""
