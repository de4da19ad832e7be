"""The search of a result folder run again on a few images, with the models and the masks that the run had."""

from collections.abc import Sequence

import numpy as np
import torch

from rub.errors import RubError
from rub.models.mae.masks import keyed_noise
from rub.models.mae.model import MaskedAutoencoder
from rub.tasks.inpainting.attacks.harness import make_target, score
from rub.tasks.inpainting.graph import named
from rub.tasks.inpainting.spec import AttackSpec, InpaintingProtocol, Level
from rub.tasks.inpainting.stages import MOST_MASK_TOKENS, WEIGHTS, EvalSet, eval_set, model_of, search
from rub.witness.images import claimed_dataset
from rub.witness.reattack import NOWHERE, Bools, ReattackRequest, published, stored
from rub.zoo.lookup import load_folder

_Parts = tuple[MaskedAutoencoder, MaskedAutoencoder, EvalSet]


def reattack(request: ReattackRequest) -> Bools:
    """Which images, bool (N,), the protocol's search recovers from a row's weights, with seeds of the checker's own.

    The budget is that of the record, after those that its search starts from, as a run does.

    Raises:
        RubError: neither store nor zoo has all parts, or their models are others than those that the folder is about.
    """
    parts = _of_store(request) or _of_zoo(request)
    if parts is None:
        raise RubError(f"{NOWHERE}, or its models with --zoo")
    original, unlearned, side = parts
    protocol, runtime, samples = request.protocol, request.runtime, side.samples
    assert isinstance(protocol, InpaintingProtocol)  # of the record's task
    budgets = budgets_before(protocol.attacks[request.record.attack], request.record.budget)
    device, mask = torch.device(runtime.device), side.mask(original)
    target = make_target(original, unlearned, samples.images, mask, runtime.batch_size, device)
    clean = score(target, samples.images, None, runtime.batch_size, device) <= protocol.recovered_below
    request.compare(clean.numpy())
    spec = {"runs": request.runs, "seed": request.seed, "recovered_below": protocol.recovered_below}
    start = None
    for budget in budgets:
        found = search({**spec, "budget": budget}, samples, target, start, runtime)
        start = found.inputs
    return np.asarray(found.step.numpy() >= 0)


def budgets_before(plan: AttackSpec, last: str) -> Sequence[Level]:
    """Budgets to search one after the other so that the last one starts where it does in a run, that one included.

    Raises:
        RubError: the protocol does not have it.

    Example:
        >>> plan = AttackSpec(runs=["uma"], budgets=[4, 8, "unbounded", "free"], warm_start=True)
        >>> budgets_before(plan, "unbounded"), budgets_before(plan, "free")
        ((4, 8, 'unbounded'), ('free',))
    """
    names = [*map(named, plan.budgets)]
    if last not in names:
        raise RubError(f"its protocol has no budget {last}: {', '.join(names)}")
    end = names.index(last)
    first = max((place for place in range(end + 1) if plan.budgets[place] == "free"), default=0)
    return plan.budgets[first if plan.warm_start else end : end + 1]


def _of_store(request: ReattackRequest) -> _Parts | None:
    """Original, unlearned model and masked images of the stages that made a row; None where its search is not there."""
    found = stored(request, lambda model: WEIGHTS)
    if found is None:
        return None
    _, inputs = found
    runtime = request.runtime
    side = eval_set("forget", inputs, runtime)
    rows = request.rows(side.samples.ids)
    side = EvalSet(side.samples.select(rows), side.noise[rows], side.ratio)
    return model_of(inputs, "original", runtime), model_of(inputs, "unlearned", runtime), side


def _of_zoo(request: ReattackRequest) -> _Parts | None:
    """The same of published models, on images and masks of which the key of the search is a hash; None without them."""
    found = published(request)
    if found is None:
        return None
    original, unlearned = (load_folder(folder) for folder in found)
    if not isinstance(original, MaskedAutoencoder) or not isinstance(unlearned, MaskedAutoencoder):
        raise RubError("the zoo's models with its weights are no masked autoencoders")
    return original, unlearned, _masked(request)


def _masked(request: ReattackRequest) -> EvalSet:
    read = request.read
    if not {"data", "chosen"} <= read.keys():
        raise RubError("the folder does not say which images and masks its search was on")
    chosen = read["chosen"].spec
    ratio, seed = chosen.get("mask_ratio"), chosen.get("mask_seed")
    if not isinstance(ratio, float) or not 0 < ratio < 1 or not isinstance(seed, int):
        raise RubError("the folder's stages say no mask ratio or mask seed")
    dataset = claimed_dataset(read["data"].spec, request.sources)
    pool = dataset.test if chosen.get("images") == "test" else dataset.train
    samples = pool.select(request.rows(pool.ids))
    return EvalSet(samples, keyed_noise(samples.ids, MOST_MASK_TOKENS, seed), ratio)
