"""Shorter versions of what `make soak` does: kills at random moments, and mutated files for every reader."""

import random
import shutil
import subprocess

import pytest
import yaml

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def soak(benchmark_script):
    return benchmark_script("soak")


def test_killed_runs_end_with_the_records_of_an_undisturbed_one(soak, tmp_path):
    suite = tmp_path / "soak.yaml"
    suite.write_text(yaml.safe_dump(soak.SUITE))
    assert soak.started(suite, tmp_path / "whole", "inline").wait() == 0
    expected = soak.records_of(tmp_path / "whole")
    line = soak.killed(suite, tmp_path / "killed", "inline", 2, expected, random.Random(0))
    assert line.startswith("kills (inline): 2 SIGKILLs in ")
    assert "inside a stage that had a checkpoint" in line
    runs = line.split(" SIGKILLs in ")[1].split(" ")[0]
    assert line.endswith(f"{runs} of {runs}")


def test_a_full_disk_is_one_line_and_the_store_stays_whole(soak, tmp_path):
    if subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("this system lets nobody but root mount a small disk")
    suite = tmp_path / "soak.yaml"
    suite.write_text(yaml.safe_dump(soak.SUITE))
    assert soak.started(suite, tmp_path / "whole", "inline").wait() == 0
    line = soak.filled(suite, tmp_path / "disk", 256, soak.records_of(tmp_path / "whole"))
    assert line.endswith("records equal: True")
    assert int(line.split("disk full: ")[1].split()[0]) >= 3


def test_mutated_files_never_end_in_a_traceback(soak, tiny_out, tmp_path):
    shutil.copytree(tiny_out, tmp_path / "whole" / "out")
    lines = list(soak.fuzzed(tmp_path, 40, random.Random(1)))
    assert len(lines) == 11
    for line in lines:
        assert ", 0 tracebacks" in line, line
        assert " 0 refused" not in line, f"nothing was refused, so nothing was tried: {line}"
