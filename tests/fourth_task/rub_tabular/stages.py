"""Stage functions, a method, a control, an attack, and the check of a witness."""

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sklearn import datasets
from torch import nn
from torch.nn.functional import cross_entropy

import rub
from rub.errors import RubError
from rub.metrics.base import Measured, Outputs
from rub.registry import ATTACKS, unlearner
from rub.witness.claims import model_file, write_witness
from rub.witness.images import image_sha256, model_reference

from .graph import METRICS, cell

WEIGHTS, PROBES = "weights.safetensors", "probes.safetensors"


def draw(table):
    """Standardised rows float32 (N, 2), and labels (N,), of each part; the forgotten ones are a class of their own."""
    x, y = getattr(datasets, f"make_{table['name']}")(300, random_state=0)
    x, y, cut = torch.tensor((x - x.mean(0)) / x.std(0)).float(), torch.tensor(y), table["forget"]
    x[:cut] += 3
    y[:cut] = 2
    return {"forget": (x[:cut], y[:cut]), "retain": (x[cut:225], y[cut:225]), "test": (x[225:], y[225:])}


def read(path=None):
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
    parts, model = draw(stage.spec["table"]), read()
    x, y = (torch.cat([parts[name][item] for name in stage.spec["parts"]]) for item in (0, 1))
    save_file(descend(model, lambda: cross_entropy(model(x), y), 200).state_dict(), out / WEIGHTS)


def import_(stage, inputs, out, runtime):
    save_file(read(stage.files["weights"]).state_dict(), out / WEIGHTS)


def unlearn_(stage, inputs, out, runtime):
    given, (forget, retain, _) = stage.spec["method"], draw(stage.spec["table"]).values()
    model, method = read(inputs["original"].file(WEIGHTS)), unlearner(given["name"], "tabular").load()
    save_file(method(model, forget, retain, runtime, **given["parameters"]).state_dict(), out / WEIGHTS)


def attack_(stage, inputs, out, runtime):
    (run,), (clean, model, wanted) = stage.spec["runs"], _case(stage, inputs)
    search = ATTACKS.get(run["name"], "tabular").load()
    probes = search((model, wanted), clean, stage.spec["budget"] / 100, runtime, **run["parameters"])
    save_file({"probes": probes, "logits": model(probes)}, out / PROBES)


def measure_(stage, inputs, out, runtime):
    spec, (clean, model, wanted), test = stage.spec, _case(stage, inputs), draw(stage.spec["table"])["test"]
    at = {name: spec[name] for name in ("attack", "budget") if name in spec}
    probes = load_file(inputs["attack"].file(PROBES))["probes"] if at else clean
    said = {"test": (model(test[0]), test[1]), "forget": (logits := model(probes), wanted)}
    if "retrained" in inputs:
        said["retrained"] = load_file(inputs["retrained"].file(PROBES))["logits"], wanted
    seen = {name: Outputs(np.arange(len(y)), y.numpy(), z.numpy()) for name, (z, y) in said.items()}
    made = {"weights_sha256": inputs["unlearned"].sha256(WEIGHTS)} | ({"converged": True} if at else {})
    measured, names = Measured(cell, spec["method"], spec["seed"], made), {place["metric"] for place in stage.cells}
    for metric in (metric for metric in METRICS if metric.name in names):
        measured.compute(metric, metric.asked(seen.__getitem__), **at)
    measured.save(out)
    kept = (logits.argmax(1) == wanted).nonzero()[:, 0]
    if at and len(kept):
        ahead, hashes = lead(logits, wanted).tolist(), [image_sha256(row) for row in clean]
        samples = [{"id": row, "sha256": hashes[row], "value": ahead[row]} for row in kept.tolist()]
        claim = {"task": "tabular", "method": spec["method"], "unlearn_seed": spec["seed"], **at, "split": "forget",
                 "claim": "lead of another answer", "at_most": 0.0, "data": spec["table"], "samples": samples,
                 "models": {"unlearned": model_reference(inputs["unlearned"], WEIGHTS)}}  # fmt: skip
        write_witness(claim, {"probes": probes[kept], "wanted": wanted[kept]}, out)


def lead(logits, wanted):
    return logits.max(1).values - logits.gather(1, wanted[:, None])[:, 0]


def _case(stage, inputs):
    clean = draw(stage.spec["table"])["forget"][0]
    original, unlearned = (read(inputs[role].file(WEIGHTS)).requires_grad_(False) for role in ("original", "unlearned"))
    return clean, unlearned, original(clean).argmax(1)


def verify(witness, tensors, sources):
    """Number of rows whose claim holds, and a line for each of the others."""
    clean = draw(witness.data)["forget"][0][[sample.id for sample in witness.samples]]
    if [image_sha256(row) for row in clean] != [sample.sha256 for sample in witness.samples]:
        raise RubError("the table has other rows than the claim is about")
    ahead = lead(read(model_file(witness, "unlearned", sources))(tensors["probes"]), tensors["wanted"])
    limit = int(witness.budget.partition("/")[0]) / 100 + 1e-6
    bad = (ahead > witness.at_most) | ((tensors["probes"] - clean).abs().amax(1) > limit)
    broken = [f"row {witness.samples[row].id}: {ahead[row]:.3f}" for row in bad.nonzero()[:, 0].tolist()]
    return len(clean) - len(broken), broken
