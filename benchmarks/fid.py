"""Speed of FID against torchmetrics' and torch-fidelity's: same features, same run, same hardware.

    python benchmarks/fid.py                    # N = 500 of 2048 features, the size of Inception's
    python benchmarks/fid.py --images 100

The features are synthetic (a falling spectrum, as a network's). Each side goes from features to the distance in
float64: ours by the nuclear norm of A B^T, the peers by covariances and the eigenvalues of their product.
torch-fidelity takes part where it can be imported (it needs torchvision). The values must agree to a relative 1e-4,
and ours must be at least ten times as fast.
"""

import argparse
import importlib
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from rub.metrics.generative import frechet_distance

GOAL, AGREEMENT = 10.0, 1e-4
Features = NDArray[np.float64]
Peer = Callable[[Features, Features], float]


def synthetic(count: int, dimension: int, seed: int) -> Features:
    """Features of one law whatever the seed: variances fall as 1 / rank, turned by a fixed random mix."""
    mix = np.random.default_rng(99).standard_normal((dimension, dimension)) / np.sqrt(dimension)
    spectrum = 1 / np.sqrt(1 + np.arange(dimension))
    return np.random.default_rng(seed).standard_normal((count, dimension)) * spectrum @ mix


def torchmetrics_fid(a: Features, b: Features) -> float:
    from torchmetrics.image.fid import _compute_fid

    return float(_compute_fid(*(part for x in (a, b) for part in (torch.from_numpy(x).mean(0), covariance(x)))))


def covariance(values: Features) -> torch.Tensor:
    return torch.cov(torch.from_numpy(values).T)


def torch_fidelity_fid(a: Features, b: Features) -> float:
    fid = importlib.import_module("torch_fidelity.metric_fid")
    parts = [fid.fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)]
    return float(fid.fid_statistics_to_metric(*parts, verbose=False)[fid.KEY_METRIC_FID])


def peers() -> dict[str, Peer]:
    found: dict[str, Peer] = {"torchmetrics": torchmetrics_fid}
    try:
        importlib.import_module("torch_fidelity.metric_fid")
    except (ImportError, RuntimeError, OSError) as error:  # a torchvision of another torch fails in any of these ways
        print(f"torch-fidelity does not take part: {error}", flush=True)
    else:
        found["torch-fidelity"] = torch_fidelity_fid
    return found


def timed(compute: Peer, a: Features, b: Features, repeat: int = 1) -> tuple[float, float]:
    """Return the value and the shortest of some times, in seconds."""
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        value = compute(a, b)
        seconds.append(time.perf_counter() - start)
    return value, min(seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500, help="N, of either set")
    parser.add_argument("--dimension", type=int, default=2048, help="d")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 leaves torch's choice")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    a, b = (synthetic(args.images, args.dimension, seed) for seed in (0, 1))
    small = synthetic(20, 8, 0)  # imports and first calls are nobody's speed
    frechet_distance(small, small)
    value, seconds = timed(frechet_distance, a, b, repeat=3)
    print(f"N = {args.images}, d = {args.dimension}, {torch.get_num_threads()} threads, float64")
    print(f"{'rub':15s} {seconds:8.2f} s   FID {value:.8f}", flush=True)
    good = True
    for name, peer in peers().items():
        peer(small, small)
        theirs, spent = timed(peer, a, b)
        ratio, gap = spent / seconds, abs(value - theirs) / abs(theirs)
        holds = ratio >= GOAL and gap <= AGREEMENT
        good &= holds
        print(f"{name:15s} {spent:8.2f} s   FID {theirs:.8f}", flush=True)
        verdict = "holds" if holds else "DOES NOT HOLD"
        print(
            f"    ratio {ratio:.0f} (goal {GOAL:.0f}), relative difference {gap:.1e} (goal {AGREEMENT:.0e}): {verdict}"
        )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
