"""``rub audit``: one command per task, made from the task's `rub.audits.base.AuditRequest`."""

import inspect
import sys
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

import typer
from annotated_types import Ge
from pydantic.fields import FieldInfo
from typer.core import TyperGroup

from rub.cli.options import BATCH, DATA, DEVICE, OUT, OVERWRITE, PLUGIN, STORE, console, load_plugins, say
from rub.config.documents import is_number
from rub.errors import RubError
from rub.registry import METRICS, TASKS

if TYPE_CHECKING:
    from rub.audits.base import AuditRequest


class _Tasks(TyperGroup):
    """The tasks that have audits, also those of plug-ins; their requests are imported when a command is looked up."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [entry.name for entry in TASKS.entries() if entry.load().audit]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return _command(cmd_name) if cmd_name in self.list_commands(ctx) else None


audit_app = typer.Typer(
    cls=_Tasks, help="Measure checkpoints that RUB did not make, and end in a verdict.", no_args_is_help=True
)


@audit_app.callback()
def _plugins(
    plugin: Annotated[
        list[Path] | None,
        typer.Option(help="Python file or package with a task; repeatable.", is_eager=True, callback=load_plugins),
    ] = None,
) -> None: ...


def _command(task: str) -> Any:
    from rub.audits.base import audit_of

    audit = audit_of(task)
    app = typer.Typer(add_completion=False)
    summary, example = inspect.getdoc(audit.request), f"Example: rub audit {task} {audit.example}"
    app.command(task, help=summary, epilog=example)(_function(audit.request))
    return typer.main.get_command(app)


def _function(request: "type[AuditRequest]") -> Any:
    def run(
        *,
        store: STORE = None,
        out: OUT = None,
        data_root: DATA = None,
        device: DEVICE = "auto",
        batch_size: BATCH = 256,
        plugin: PLUGIN = None,
        overwrite: OVERWRITE = False,
        **given: Any,
    ) -> None:
        from rub import api
        from rub.audits.base import lines
        from rub.pipeline.progress import Display

        added = [entry.name for entry in load_plugins(plugin) if METRICS.owns(entry, request.task)]
        fields = {name: _value(name, request.model_fields[name], value) for name, value in given.items()}
        fields["metrics"] = (*(fields["metrics"] or ()), *added)
        report = api.audit(
            request(**{name: value for name, value in fields.items() if value is not None}),
            store=store,
            runtime=api.make_runtime(data_root=data_root, device=device, batch_size=batch_size),
            display=Display(console()),
            out=out,
            overwrite=overwrite,
            command=api.reproducible(sys.argv[1:]),
        )
        for line in lines(report):
            say(line, markup=True)
        if report.failures:
            raise typer.Exit(3)

    shared = [item for item in inspect.signature(run).parameters.values() if item.kind is item.KEYWORD_ONLY]
    own = []
    for name, field in request.model_fields.items():
        default = inspect.Parameter.empty if field.is_required() else field.default or None
        kind = inspect.Parameter.KEYWORD_ONLY
        own.append(inspect.Parameter(name, kind, default=default, annotation=_option(field)))
    run.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
    run.__annotations__ = {item.name: item.annotation for item in (*own, *shared)}
    return run


def _kind(field: FieldInfo) -> Any:  # without None
    hint: Any = field.annotation
    return get_args(hint)[0] if isinstance(hint, UnionType) else hint


def _option(field: FieldInfo) -> Any:
    kind = str if get_origin(_kind(field)) is tuple else _kind(field)
    least = next((item.ge for item in field.metadata if isinstance(item, Ge)), None)
    option = typer.Option(help=field.description, min=least)  # type: ignore[arg-type]
    return Annotated[kind if field.is_required() or field.default else kind | None, option]


def _value(name: str, field: FieldInfo, given: Any) -> Any:
    kind = _kind(field)
    if get_origin(kind) is not tuple or given is None:
        return given
    part, option = get_args(kind)[0], f"--{name.replace('_', '-')}"
    if isinstance(part, UnionType):
        asked = [text.strip() for text in given.split(",")]
        if not all(asked):
            raise RubError(f"{option} {given}: should be numbers or names with commas between them, such as 0,3")
        return tuple(int(text) if is_number(text) else text.strip("'\"") for text in asked)
    try:
        return tuple(part(text) for text in given.split(",") if text or part is not str)
    except ValueError:
        what = "whole numbers" if part is int else "numbers"
        raise RubError(f"{option} {given}: should be {what} with commas between them, such as 0,3") from None
