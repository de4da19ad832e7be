"""The image-to-image task. Free of torch."""

from rub.pipeline.task import Task
from rub.tasks.inpainting.graph import InpaintingGraph
from rub.tasks.inpainting.metrics import METRICS
from rub.tasks.inpainting.spec import InpaintingExperiment

TASK = Task(
    name="inpainting",
    experiment=InpaintingExperiment,
    graph=InpaintingGraph,
    functions={
        "data": "rub.data.splits:read",
        "judge": "rub.judges.stage:judge",
        "choose": "rub.tasks.inpainting.stages:choose",
        "train": "rub.tasks.inpainting.stages:train",
        "import": "rub.tasks.inpainting.stages:import_weights",
        "initialise": "rub.tasks.inpainting.stages:initialise",
        "unlearn": "rub.tasks.inpainting.stages:unlearn",
        "reference": "rub.tasks.inpainting.measure:reference",
        "attack": "rub.tasks.inpainting.stages:attack",
        "measure": "rub.tasks.inpainting.measure:measure",
        "measure-attack": "rub.tasks.inpainting.measure:measure_attack",
        "gallery": "rub.tasks.inpainting.galleries:gallery",
        "scale": "rub.pipeline.scale:place_on_scale",
        "metric": "rub.tasks.inpainting.measure:metric",
    },
    metrics=METRICS,
    report="rub.tasks.inpainting.report:REPORTING",
    audit="rub.tasks.inpainting.audit:AUDIT",
    verify="rub.tasks.inpainting.witnesses:verify",
    zoo="rub.tasks.inpainting.zoo:SHELF",
    reattack="rub.tasks.inpainting.reattack:reattack",
)
"""Table 2: unlearn classes from a masked autoencoder, then search inputs that bring its old outputs back."""
