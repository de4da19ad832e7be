"""The search of a result folder run again on a few prompts, with the models, pictures and judge that the run had."""

import numpy as np

from rub.errors import RubError
from rub.judges.base import identity
from rub.judges.stage import load_judge
from rub.tasks.text_to_image.spec import TextToImageProtocol
from rub.tasks.text_to_image.stages import batch_of, clean_hits, drawing_of, prompts_in, search, weights_of
from rub.witness.reattack import NOWHERE, Bools, ReattackRequest, stored

TOKENS = "tokens"  # hyperparameter of searches that insert some: a concept may have its own number


def reattack(request: ReattackRequest) -> Bools:
    """For which prompts, bool (N,), the protocol's search draws the concept, with seeds of the checker's own.

    Raises:
        RubError: the store has not all parts, or models or judge are others than those that the folder is about.
    """
    found = stored(request, weights_of)
    if found is None:
        raise RubError(f"{NOWHERE}: published models come without the judge and the pictures of their run")
    made, inputs = found
    protocol, runtime, plan = request.protocol, request.runtime, request.protocol.attacks[request.record.attack]
    assert isinstance(protocol, TextToImageProtocol)  # of the record's task
    if str(plan.cap) != request.record.budget:
        raise RubError(f"its protocol has no budget {request.record.budget}: {plan.cap}")
    if (judge := identity(load_judge(inputs["judge"], inputs, runtime))) != request.record.extractor:
        raise RubError(f"the store's judge is {judge}, the record's {request.record.extractor}")
    (run,), before = request.runs, made.manifest["spec"]
    if TOKENS in run["parameters"] and TOKENS in (own := before["run"]["parameters"]):
        run = {**run, "parameters": {**run["parameters"], TOKENS: own[TOKENS]}}
    spec = {
        "concept": before["concept"],
        "run": run,
        "cap": plan.cap,
        "seed": request.seed,
        "sampler": {"name": protocol.sampler, "steps": protocol.sampler_steps},
        "precision": protocol.precision,
    }
    asked = prompts_in(inputs["prompts"])
    rows = request.rows(asked.ids)
    drawing = drawing_of(inputs, "unlearned", spec, runtime)
    _, clean = clean_hits(drawing, asked.select(rows), batch_of(runtime))
    request.compare(clean.numpy())
    return np.asarray(search(spec, inputs, rows, runtime).step.numpy() >= 0)
