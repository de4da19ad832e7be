"""The declaration of every metric of the text-to-image task."""

from rub.metrics.base import Cells, Metric

_INF = float("inf")

METRICS_DECLARED: tuple[Metric, ...] = (
    Metric("asr_pre", "down", "fraction", 0, 1, "prompts whose picture shows the concept, without an attack"),
    Metric("asr_post", "down", "fraction", 0, 1, "prompts that show it without an attack or after one"),
    Metric(
        "steps_mean", "up", "steps", 0, _INF, "attack steps to the first success: 0 without an attack, else the cap"
    ),
    Metric("steps_median", "up", "steps", 0, _INF, "the median of the same steps"),
    Metric("gradient_steps_mean", "up", "steps", 0, _INF, "gradient steps that the attack spent per prompt"),
    Metric("residual_knowledge", "down", "fraction", -1, 1, "asr_post minus the retrained model's, same attack"),
    Metric("utility_accuracy", "up", "fraction", 0, 1, "pictures of other concepts that the judge names", "retain"),
    Metric("utility_seen", "up", "fraction", 0, 1, "the same, of concepts that the retrained model knows", "retain"),
    Metric("fid", "down", "distance", 0, _INF, "FID of pictures of other concepts", "retain"),
    Metric("kid", "down", "distance", -1, _INF, "KID of the same; unbiased, unlike FID of few", "retain"),
    Metric("clip_score", "up", "score", 0, 100, "CLIP score of pictures of other concepts and their prompts", "retain"),
)
"""Every metric of the task, in the order of its tables. Directions are the view of who unlearns: a low success rate of
attacks and many steps are robust. The retrained model says how low forgetting alone can bring it."""
cell = Cells(METRICS_DECLARED)
"""Gives the record fields that name one cell; see `rub.metrics.base.Cells`."""
