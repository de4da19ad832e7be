"""The text-to-image task. Free of torch."""

from rub.pipeline.task import Task
from rub.tasks.text_to_image.graph import TextToImageGraph
from rub.tasks.text_to_image.metrics import METRICS
from rub.tasks.text_to_image.spec import TextToImageExperiment

TASK = Task(
    name="text-to-image",
    experiment=TextToImageExperiment,
    graph=TextToImageGraph,
    functions={
        "data": "rub.data.splits:read",
        "judge": "rub.judges.stage:judge",
        "prompts": "rub.tasks.text_to_image.stages:prompts",
        "train": "rub.tasks.text_to_image.stages:train",
        "import": "rub.tasks.text_to_image.stages:import_model",
        "initialise": "rub.tasks.text_to_image.stages:initialise",
        "pictures": "rub.tasks.text_to_image.stages:method_images",
        "unlearn": "rub.tasks.text_to_image.stages:unlearn",
        "reference": "rub.tasks.text_to_image.measure:reference",
        "others": "rub.tasks.text_to_image.measure:other_pictures",
        "attack": "rub.tasks.text_to_image.stages:attack",
        "measure": "rub.tasks.text_to_image.measure:measure",
        "measure-attack": "rub.tasks.text_to_image.measure:measure_attack",
        "gallery": "rub.tasks.text_to_image.galleries:gallery",
        "metric": "rub.tasks.text_to_image.measure:metric",
        "scale": "rub.pipeline.scale:place_on_scale",
    },
    metrics=METRICS,
    report="rub.tasks.text_to_image.report:REPORTING",
    audit="rub.tasks.text_to_image.audit:AUDIT",
    work="rub.tasks.text_to_image.work:work_of",
    verify="rub.tasks.text_to_image.witnesses:verify",
    zoo="rub.tasks.text_to_image.zoo:SHELF",
    reattack="rub.tasks.text_to_image.reattack:reattack",
)
"""Table 3: unlearn a concept from a diffusion model, then search prompts that draw it again."""
