"""Stage functions, a method, a control, an attack, and the check of a witness."""

from functools import partial
from hashlib import sha256

import torch
from safetensors.torch import load_file, save_file
from sklearn import datasets
from torch import nn
from torch.nn.functional import cross_entropy

import rub
from rub.errors import RubError
from rub.metrics.base import Measured
from rub.registry import ATTACKS, unlearner
from rub.witness.claims import model_file, write_witness

from .graph import cell

WEIGHTS, PROBES = "weights.safetensors", "probes.safetensors"


def draw(table):
    """Standardised rows float32 (N, 2), and labels (N,), of each part; the forgotten ones are a class of their own."""
    make = {"blobs": partial(datasets.make_blobs, centers=2), "moons": datasets.make_moons}
    x, y = make[table["name"]](300, random_state=0)
    x, y = torch.tensor((x - x.mean(0)) / x.std(0)).float(), torch.tensor(y)
    x[: table["forget"]] += 3
    y[: table["forget"]] = 2
    ends = {"forget": slice(table["forget"]), "retain": slice(table["forget"], 225), "test": slice(225, None)}
    return {name: (x[part], y[part]) for name, part in ends.items()}


def read(path=None):
    """The network of a file of weights, or a new one."""
    model = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 3))
    if path is not None:
        model.load_state_dict(load_file(path))
    return model


def descend(model, loss, steps):
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    return model


@rub.method("ft", task="tabular")
def fine_tune(model, forget, retain, context, *, steps: int = 50):
    """Fine-tune on the retained rows."""
    return descend(model, lambda: cross_entropy(model(retain[0]), retain[1]), steps)


@rub.control("inverted", task="tabular")
def inverted(model, forget, retain, context):
    """the original with its answers turned round. It knows all, and says something else."""
    model[2].weight.data *= -1
    return model


@rub.attack("uma", task="tabular")
def uma(target, rows, budget, context, *, steps: int = 20):
    """Signed gradient steps towards the original's answer."""
    (model, wanted), delta = target, torch.zeros_like(rows)
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(cross_entropy(model(rows + delta.requires_grad_()), wanted), delta)
        delta = (delta.detach() - 2.5 * budget / steps * gradient.sign()).clamp(-budget, budget)
    return rows + delta


def train_(stage, inputs, out, runtime):
    torch.manual_seed(stage.spec["seed"])
    parts = draw(stage.spec["table"])
    x, y = (torch.cat([parts[name][item] for name in stage.spec["parts"]]) for item in (0, 1))
    model = read()
    save_file(descend(model, lambda: cross_entropy(model(x), y), 200).state_dict(), out / WEIGHTS)


def import_(stage, inputs, out, runtime):
    save_file(read(stage.files["weights"]).state_dict(), out / WEIGHTS)


def unlearn_(stage, inputs, out, runtime):
    torch.manual_seed(stage.spec["seed"])
    given, parts = stage.spec["method"], draw(stage.spec["table"])
    model, method = read(inputs["original"].file(WEIGHTS)), unlearner(given["name"], "tabular").load()
    made = method(model, parts["forget"], parts["retain"], runtime, **given["parameters"])
    save_file(made.state_dict(), out / WEIGHTS)


def attack_(stage, inputs, out, runtime):
    torch.manual_seed(stage.spec["seed"])
    clean, model, wanted = _case(stage, inputs)
    for run in stage.spec["runs"]:
        search = ATTACKS.get(run["name"], "tabular").load()
        probes = search((model, wanted), clean, stage.spec["budget"] / 100, runtime, **run["parameters"])
    save_file({"probes": probes, "lead": lead(model(probes), wanted)}, out / PROBES)


def measure_(stage, inputs, out, runtime):
    spec, (clean, model, wanted), (x, y) = stage.spec, _case(stage, inputs), draw(stage.spec["table"])["test"]
    at = {name: spec[name] for name in ("attack", "budget") if name in spec}
    facts = {"weights_sha256": inputs["unlearned"].sha256(WEIGHTS)} | ({"converged": True} if at else {})
    measured = Measured(cell, spec["method"], spec["seed"], facts)
    probes = load_file(inputs["attack"].file(PROBES))["probes"] if at else clean
    back = (ahead := lead(model(probes), wanted)) <= 0
    measured.share("recovered", back.numpy(), **at)
    if not at:
        measured.share("ta", (model(x).argmax(1) == y).numpy())
    if "retrained" in inputs:
        never = load_file(inputs["retrained"].file(PROBES))["lead"] <= 0
        measured.add("residual_knowledge", (back.double() - never.double()).mean().item(), len(back), **at)
    measured.save(out)
    if at and back.any():
        made = inputs["unlearned"]
        kind = stage.inputs["unlearned"].kind
        weights = {"kind": kind, "key": made.key, "file": WEIGHTS, "sha256": made.sha256(WEIGHTS)}
        kept = back.nonzero()[:, 0]
        samples = [
            {"id": row, "sha256": sha256(clean[row].numpy().tobytes()).hexdigest(), "value": ahead[row].item()}
            for row in kept.tolist()
        ]
        claim = {"task": "tabular", "method": spec["method"], "unlearn_seed": spec["seed"], **at, "split": "forget",
                 "claim": "lead of another answer", "at_most": 0.0, "models": {"unlearned": weights},
                 "data": spec["table"], "samples": samples}  # fmt: skip
        write_witness(claim, {"probes": probes[kept], "wanted": wanted[kept]}, out)


def lead(logits, wanted):
    """By how much another answer is ahead of the wanted one; 0 or less: the wanted one is given."""
    return logits.max(1).values - logits.gather(1, wanted[:, None])[:, 0]


def _case(stage, inputs):
    clean = draw(stage.spec["table"])["forget"][0]
    original, unlearned = (read(inputs[role].file(WEIGHTS)).requires_grad_(False) for role in ("original", "unlearned"))
    return clean, unlearned, original(clean).argmax(1)


def verify(witness, tensors, sources):
    """Number of rows whose claim holds, and a line for each of the others."""
    clean = draw(witness.data)["forget"][0][[sample.id for sample in witness.samples]]
    if [sha256(row.numpy().tobytes()).hexdigest() for row in clean] != [sample.sha256 for sample in witness.samples]:
        raise RubError("the table has other rows than the claim is about")
    ahead = lead(read(model_file(witness, "unlearned", sources))(tensors["probes"]), tensors["wanted"])
    limit = int(witness.budget.partition("/")[0]) / 100 + 1e-6
    bad = (ahead > witness.at_most) | ((tensors["probes"] - clean).abs().amax(1) > limit)
    broken = [f"row {witness.samples[row].id}: {ahead[row]:.3f}" for row in bad.nonzero()[:, 0].tolist()]
    return len(clean) - len(broken), broken
