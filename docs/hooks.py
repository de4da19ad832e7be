"""Pages that mkdocs makes of files beside docs/, of the notebooks, and of the code itself."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from posixpath import normpath
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import nbformat
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import rub
from rub.cli.main import app
from rub.config.suite import suite_names
from rub.registry import KINDS, TASKS
from rub.reports.frames import SAMPLE_COLUMNS
from rub.store.records import Record

ROOT = Path(__file__).parents[1]
BESIDE = {
    "index.md": "README.md",
    "results.md": "results/README.md",
    "performance.md": "benchmarks/README.md",
    "architecture.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
"""Page -> the file of the repository that it shows."""
COLAB = "https://colab.research.google.com/github/rub-bench/rub/blob/main/docs/notebooks"
_LINK = re.compile(r"(\]\()(?!https?:|mailto:|#)([^)#\s]+)([^)\s]*\))")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made."""
    from mkdocs.structure.files import File

    made = {page: (ROOT / source).read_text(encoding="utf-8") for page, source in BESIDE.items()}
    for notebook in sorted((ROOT / "docs/notebooks").glob("*.ipynb")):
        made[f"tutorials/{notebook.stem}.md"] = "\n".join(tutorial(notebook))
    made |= {
        "reference/cli.md": commands(),
        "reference/python.md": "\n".join(functions()),
        "reference/suites.md": "\n".join(suites()),
        "reference/records.md": "\n".join(records()),
        "reference/components.md": "\n".join(components()),
    }
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links as they are in the repository, so that they lead to a page here, or to the repository."""
    source = BESIDE.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    pages = {where: name for name, where in BESIDE.items()}
    pages |= {
        f"docs/notebooks/{Path(name).stem}.ipynb": name for name in files.src_uris if name.startswith("tutorials/")
    }

    def moved(found: re.Match[str]) -> str:
        place = normpath(str(Path(source).parent / found[2]))
        here = pages.get(place, place.removeprefix("docs/") if place.startswith("docs/") else "")
        if here in files.src_uris:
            up = "../" * page.file.src_uri.count("/")
            return f"{found[1]}{up}{here}{found[3]}"
        return f"{found[1]}{config.repo_url}/blob/main/{place}{found[3]}"

    return _LINK.sub(moved, markdown)


def tutorial(notebook: Path) -> Iterator[str]:
    """A notebook as a page: its text, its code, and what that printed."""
    cells = nbformat.read(notebook, as_version=4).cells
    title, _, rest = cells[0].source.partition("\n")
    yield f"{title}\n\n[Open in Colab]({COLAB}/{notebook.name})\n{rest}\n"
    for cell in cells[1:]:
        if cell.cell_type == "markdown":
            yield f"{cell.source}\n"
            continue
        yield f"```python\n{cell.source}\n```\n"
        data = [output.get("data", {}) for output in cell.outputs]
        yield from (f"{one['text/markdown']}\n" for one in data if "text/markdown" in one)
        printed = "".join(output.get("text", "") for output in cell.outputs)
        if printed := printed or "".join(one.get("text/plain", "") for one in data if "text/markdown" not in one):
            yield f"```text\n{printed.rstrip()}\n```\n"


def commands() -> str:
    """Every command of ``rub`` with its options, as typer knows them."""
    import typer

    command = typer.main.get_command(app)
    from typer.cli import get_docs_for_click

    return "# The command line\n\n" + get_docs_for_click(obj=command, ctx=typer.Context(command), indent=1, name="rub")


def functions() -> Iterator[str]:
    """The public functions and decorators of ``rub``."""
    yield "# Python\n\nEverything here is `rub.NAME`.\n"
    for name in rub.__all__:
        found = getattr(rub, name)
        yield f"::: {found.__module__}.{found.__qualname__}\n    options: {{heading: rub.{name}, toc_label: {name}}}\n"


def suites() -> Iterator[str]:
    """The suites that ship, and what a suite may say."""
    yield "# Suites\n\n`rub run NAME`, or a YAML file of yours with the keys below.\n\n| name | what it is |\n|:--|:--|"
    yield from (f"| `{name}` | {summary} |" for name, summary in suite_names().items())
    for entry in TASKS.entries():
        experiment = entry.load().experiment
        yield f"\n## Experiments of {entry.name}\n\n{experiment.__doc__.strip()}\n"
        yield from fields(experiment)


def fields(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """A table of a model's fields, those of models in it with their path."""
    if not path:
        yield "| key | type | default | |\n|:--|:--|:--|:--|"
    for name, field in model.model_fields.items():
        inner = next((one for one in parts(field.annotation) if issubclass(one, BaseModel)), None)
        told = (field.description or "").replace("\n", " ").replace("|", "\\|")
        yield f"| `{path}{name}` | {kind(field.annotation)} | {default(field)} | {told} |"
        if inner is not None and inner.model_config.get("extra") != "allow":  # a component has its own keys besides
            yield from fields(inner, f"{path}{name}.")


def parts(hint: Any) -> Iterator[type]:
    """Classes in a type."""
    if isinstance(hint, type):
        yield hint
    for part in get_args(hint):
        yield from parts(part)


def kind(hint: Any) -> str:
    """A type in words, such as ``list of numbers or nothing``."""
    origin, inner = get_origin(hint), [one for one in get_args(hint) if one is not Ellipsis]
    if origin is Annotated:
        return kind(inner[0])
    if origin is Literal:
        return " or ".join(f"`{one}`" for one in inner)
    if origin in (Union, UnionType):
        return " or ".join(map(kind, inner))
    if origin is tuple:
        return f"list of {kind(inner[0])}"
    if origin in (dict, Mapping):
        return f"mapping of {kind(inner[1])}"
    known = {str: "text", Any: "value", type(None): "nothing", bool: "true or false", int: "integer", float: "number"}
    return known.get(hint, "mapping" if issubclass(hint, BaseModel) else hint.__name__.lower())


def default(field: FieldInfo) -> str:
    """A field's default as text."""
    if field.is_required():
        return "needed"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or value is None or isinstance(value, BaseModel) or value in ("", (), {}):
        return ""
    return f"`{value}`".replace("|", "\\|")


def records() -> Iterator[str]:
    """The columns of ``records.parquet``, and of the files of single samples."""
    yield "# Records\n\nEvery measured number is a row of `records.parquet` and `records.json`.\n"
    yield from fields(Record)
    yield "\n## Samples\n\nEvery attacked sample is a row of `samples.parquet`, every sample of a metric that is a mean"
    yield "one of `values.parquet`. `rub.read_results(FOLDER)` gives all three as DataFrames.\n"
    yield "| column | |\n|:--|:--|"
    yield from (f"| `{name}` | {meaning} |" for name, meaning in SAMPLE_COLUMNS.items())


def components() -> Iterator[str]:
    """Every component that ships, with its first line."""
    yield "# Components\n\n`rub show NAME` prints paper, equation, defaults with their sources, and differences.\n"
    for kind_of, registry in KINDS.items():
        yield f"\n## {kind_of}\n\n| name | task | |\n|:--|:--|:--|"
        for entry in registry.entries():
            yield f"| `{entry.name}` | {entry.task} | {entry.summary} |".replace("\n", " ")
