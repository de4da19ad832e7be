"""The declaration of every metric of the text-to-image task."""

from rub.metrics.base import Cells, Metric

_INF = float("inf")

METRICS: tuple[Metric, ...] = (
    Metric("asr_pre", "pre", "prompts whose picture shows the concept, without an attack", "down"),
    Metric("asr_post", "post", "prompts that show it without an attack or after one", "down"),
    Metric("steps_mean", "avg", "attack steps to the first success: 0 without an attack, else the cap", "up",
           "steps", 2, high=_INF),
    Metric("steps_median", "med", "the median of the same steps", "up", "steps", high=_INF),
    Metric("gradient_steps_mean", "gradient steps", "gradient steps that the attack spent per prompt", "up",
           "steps", 0, high=_INF),
    Metric("residual_knowledge", "excess", "asr_post minus the retrained model's, same attack", "down", low=-1),
    Metric("utility_accuracy", "accuracy %", "pictures of other concepts that the judge names", "up", split="retain"),
    Metric("utility_seen", "accuracy % (seen)", "the same, of concepts that the retrained model knows", "up",
           split="retain"),
    Metric("fid", "FID", "FID of pictures of other concepts", "down", "distance", 2, "retain", high=_INF),
    Metric("kid", "KID", "KID of the same; unbiased, unlike FID of few", "down", "distance", 4, "retain", -1, _INF),
    Metric("clip_score", "CLIP", "CLIP score of pictures of other concepts and their prompts", "up", "score", 2,
           "retain", high=100),
)  # fmt: skip
"""Every metric of the task, in the order of its tables. Directions are the view of who unlearns: a low success rate of
attacks and many steps are robust. The retrained model says how low forgetting alone can bring it."""
cell = Cells(METRICS)
"""Gives the record fields that name one cell; see `rub.metrics.base.Cells`."""
