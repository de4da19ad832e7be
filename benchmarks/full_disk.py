"""Run a suite on a disk that grows by a little whenever it is full, and check the store each time.

    unshare -rm python benchmarks/full_disk.py SUITE.yaml EMPTY_FOLDER OUT --kib 16

Mounts a tmpfs, so it needs a mount namespace of its own (`unshare`) or root. A checkpoint is kept after every step, so
states are write points too.
"""

import argparse
import shutil
import subprocess
from pathlib import Path

from rub import load_suite, run
from rub.api import make_runtime
from rub.errors import RubError
from rub.store.artifacts import Store
from rub.store.maintenance import damaged


def main() -> None:
    """Run, print how often the disk was full, and copy the results out of the mount."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite")
    parser.add_argument("disk", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kib", type=int, default=16)
    given = parser.parse_args()
    suite, store, out = load_suite(given.suite), given.disk / "store", given.disk / "out"
    runtime, size, times = make_runtime(device="cpu", checkpoint_seconds=0), given.kib, 0
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", given.disk], check=True)
    while True:
        try:
            run(suite, store=store, out=out, runtime=runtime)
            break
        except RubError as error:
            if "disk is full" not in str(error) and "No space left" not in str(error):
                raise
        if store.is_dir() and (bad := list(damaged(Store(store)))):
            raise RuntimeError(f"not whole after the disk was full at {size} KiB: {bad}")
        times, size = times + 1, size + given.kib
        subprocess.run(["mount", "-o", f"remount,size={size}k", given.disk], check=True)
    shutil.copytree(out, given.out)
    print(times, size)


if __name__ == "__main__":
    main()
