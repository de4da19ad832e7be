"""Attacks on unlearned diffusion models: searches for prompts, embeddings, noise or pictures that bring a concept back.

An attack has the signature ``attack(target, prompts, budget, context, *, hyperparameters) -> Search``: `target` is a
`Target` (the frozen models, the tokens, the original's own pictures), `prompts` what is attacked, `budget` a `Budget`,
`context` an `AttackContext`. It only searches; `run_attack` in `harness` draws, judges and counts.
"""
