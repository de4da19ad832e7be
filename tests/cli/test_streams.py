"""Standard output that is a narrow encoding, full, closed, or no longer read: work goes on, or one line says so."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

RUB = [sys.executable, "-c", "from rub.cli.main import main; main()"]


def ran(stdout, *words, **environment):
    return subprocess.run(
        [*RUB, *map(str, words)],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_characters_that_a_terminal_lacks_become_question_marks(tiny, tmp_path):
    words = ("run", tiny.path, "--store", tiny.store, "--out", tmp_path / "out")
    ended = ran(subprocess.PIPE, *words, PYTHONIOENCODING="ascii")
    assert ended.returncode == 0
    assert "UA ?" in ended.stdout.decode("ascii")
    assert (tmp_path / "out" / "report" / "index.html").is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
def test_a_full_disk_below_the_output_is_one_line():
    with Path("/dev/full").open("w") as full:
        ended = ran(full, "show", "delete")
    assert ended.returncode == 2
    assert ended.stderr == b"rub: No space left on device: the output of this command\n"


def test_output_that_nobody_reads_ends_as_sigpipe_does():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        ended = ran(pipe, "show", "delete")
    assert (ended.returncode, ended.stderr) == (141, b"")


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_closed_streams_are_no_error(closed):
    line = f'"$0" -c "from rub.cli.main import main; main()" list tasks {closed}'
    assert subprocess.run(["sh", "-c", line, sys.executable], timeout=120, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "said",
    [
        {"COLUMNS": "0"}, {"COLUMNS": "1"}, {"COLUMNS": "-5"}, {"COLUMNS": "many"}, {"TERM": "dumb"}, {"TERM": ""},
        {"LC_ALL": "C"}, {"LC_ALL": "POSIX", "PYTHONUTF8": "0"}, {"PYTHONIOENCODING": "cp1252"},
        {"PYTHONIOENCODING": "latin-1"}, {"TMPDIR": "/proc/none"}, {"MPLCONFIGDIR": "/proc/none"},
        {"HF_HOME": "/proc/none"}, {"RUB_DATA": ""}, {"RUB_STORE": ""},
    ],
    ids=str,
)  # fmt: skip
def test_odd_environments_change_no_word(said, tmp_path):
    ended = ran(subprocess.PIPE, "plan", "quick", "--task", "classification", **{"HOME": str(tmp_path), **said})
    assert (ended.returncode, ended.stderr) == (0, b"")
    [row] = [line.split() for line in ended.stdout.decode().splitlines() if line.split()[:1] == ["unlearn"]]
    assert int(row[1]) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "said",
    [
        {"RUB_STORE": "/proc/none"}, {"RUB_STORE": "/dev/null"}, {"RUB_STORE": "", "HOME": "/proc/none"},
        {"RUB_STORE": "", "XDG_CACHE_HOME": "/proc/none"}, {"RUB_DATA": "/proc/none"},
    ],
    ids=str,
)  # fmt: skip
def test_places_that_cannot_be_are_one_line(said, tmp_path):
    ended = ran(subprocess.PIPE, "plan", "quick", "--task", "classification", **{"HOME": str(tmp_path), **said})
    assert ended.returncode == 2
    assert ended.stderr.startswith(b"rub: ") and ended.stderr.count(b"\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="a folder in use cannot be deleted there")
def test_a_folder_that_is_gone_is_no_reason_to_stop(tmp_path):
    """The working folder was deleted meanwhile; all that is asked for has whole paths."""
    code = "import os, sys; os.rmdir(os.getcwd()); from rub.cli.main import main; main()"
    gone = tmp_path / "gone"
    gone.mkdir()
    said = subprocess.run(
        [sys.executable, "-c", code, "list", "suites"], cwd=gone, capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stderr
    assert "quick" in said.stdout
