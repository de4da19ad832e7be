"""What is built: a wheel and an sdist that an index takes, which work without the sources and without a network."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
BASE = "zoo/digits/resnet10-w4"
OFFLINE = """
import socket

def refuse(*given, **named):
    raise OSError("there is no network here")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
"""


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """Wheel and sdist."""
    out = tmp_path_factory.mktemp("dist")
    built = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    said = subprocess.run(built, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout + said.stderr
    return out


@pytest.fixture(scope="module")
def installed(dist, tmp_path_factory):
    """A function that runs Python where the wheel is, and neither the sources nor a network are."""
    place = tmp_path_factory.mktemp("installed")
    [wheel] = dist.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]
    subprocess.run([*pip, str(place / "lib"), str(wheel)], check=True, capture_output=True)
    (place / "lib" / "sitecustomize.py").write_text(OFFLINE, encoding="utf-8")
    kept = ("PATH", "LANG", "OMP_NUM_THREADS", "VIRTUAL_ENV")
    own = {"PYTHONPATH": str(place / "lib"), "HOME": str(place), "HF_HUB_OFFLINE": "1"}

    def call(*given):
        said = subprocess.run(
            [sys.executable, *map(str, given)],
            cwd=place,
            env={name: os.environ[name] for name in kept if name in os.environ} | own,
            capture_output=True,
            text=True,
            check=False,
        )
        assert said.returncode == 0, said.stdout + said.stderr
        return said.stdout

    call.place = place
    return call


def rub(installed, *given):
    return installed("-c", "from rub.cli.main import main; main()", *given)


@pytest.mark.slow
def test_an_index_takes_them(dist):
    files = sorted(dist.iterdir())
    assert len(files) == 2
    said = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stdout
    assert max(path.stat().st_size for path in files) < 10 << 20


@pytest.mark.slow
def test_every_address_of_the_index_page_is_whole(dist):
    with ZipFile(next(dist.glob("*.whl"))) as wheel:
        [name] = (name for name in wheel.namelist() if name.endswith("/METADATA"))
        page = wheel.read(name).decode()
        models = sum(info.compress_size for info in wheel.infolist() if "/zoo/models/" in info.filename)
    addresses = re.findall(r"\]\(([^)]+)\)", page)
    assert addresses
    assert [one for one in addresses if not one.startswith(("https://", "#"))] == []
    assert any(one.startswith("https://raw.githubusercontent.com/") and one.endswith(".png") for one in addresses)
    assert models < 6 << 20


@pytest.mark.slow
def test_the_wheel_works_alone(installed):
    where = installed("-c", "import rub; rub.load_model('zoo/digits/resnet10-w4/salun/0'); print(rub.__file__)")
    assert Path(where.strip()).is_relative_to(installed.place)
    assert "0 not as they should be" in rub(installed, "zoo", "verify")
    shutil.copy(ROOT / "examples" / "my_attack.py", installed.place)
    said = rub(installed, "attack", f"{BASE}/ga/0", "--plugin", "my_attack.py", "--budgets", "64", "--images", "16")
    assert "corners" in said
    assert "images given to a network: uma-momentum" in said


@pytest.mark.slow
@pytest.mark.parametrize(("method", "verdict"), [("retrain", "no residual found"), ("sham", "hidden")])
def test_the_wheel_audits_its_models(installed, method, verdict):
    pair = ("--original", f"{BASE}/original/0", "--unlearned", f"{BASE}/{method}/0")
    few = ("--protocol", "rub-quick-2", "--samples", "64")
    assert f"Verdict: {verdict}" in rub(installed, "audit", "classification", *pair, *few)
