"""What tests of entries share: folders that are changed and sealed again."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def kinds():
    path = Path(__file__).parents[2] / "benchmarks" / "forgeries.py"
    spec = importlib.util.spec_from_file_location("rub_forgeries", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
