"""The classification task. Free of torch."""

from rub.pipeline.task import Task
from rub.tasks.classification.graph import ClassificationGraph
from rub.tasks.classification.metrics import METRICS
from rub.tasks.classification.spec import ClassificationExperiment

TASK = Task(
    name="classification",
    experiment=ClassificationExperiment,
    graph=ClassificationGraph,
    functions={
        "data": "rub.data.splits:read",
        "train": "rub.tasks.classification.stages:train",
        "import": "rub.tasks.classification.stages:import_weights",
        "initialise": "rub.tasks.classification.stages:initialise",
        "shadow": "rub.tasks.classification.stages:shadow",
        "unlearn": "rub.tasks.classification.stages:unlearn",
        "attack": "rub.tasks.classification.stages:attack",
        "radius": "rub.tasks.classification.contrast:measure_radius",
        "measure": "rub.tasks.classification.measure:measure",
        "relearn": "rub.tasks.classification.measure:measure_relearning",
        "measure-attack": "rub.tasks.classification.measure:measure_attack",
        "gap": "rub.tasks.classification.measure:measure_gap",
        "half": "rub.tasks.classification.stages:train_half",
        "unlearn-half": "rub.tasks.classification.stages:unlearn_half",
        "ulira": "rub.tasks.classification.measure:measure_ulira",
        "klom": "rub.tasks.classification.measure:measure_klom",
        "scale": "rub.pipeline.scale:place_on_scale",
        "metric": "rub.tasks.classification.measure:metric",
    },
    metrics=METRICS,
    report="rub.tasks.classification.report:REPORTING",
    audit="rub.tasks.classification.audit:AUDIT",
    verify="rub.tasks.classification.witnesses:verify",
    zoo="rub.tasks.classification.zoo:SHELF",
    reattack="rub.tasks.classification.reattack:reattack",
)
"""Table 1: unlearn classes or samples from an image classifier, then search inputs that bring them back."""
