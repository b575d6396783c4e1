"""What pages of the site take from the code: a line `<!-- generated: PART -->` becomes the part of that name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, get_args, get_origin

import typer

import nas
from nas.commands import app
from nas.commands._app import BUILT_LATE
from nas.report import schema
from nas.search.request import MAY_CHANGE, Request

MARK = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)


def filled(page: str) -> str:
    """A page with its parts filled in; a part that does not exist is a KeyError."""
    return MARK.sub(lambda match: PARTS[match[1]](), page)


def request() -> str:
    """The fields of a request."""
    rows = []
    for name, field in Request.model_fields.items():
        default = "CPUs, at most 8" if name == "workers" else _default(field.get_default(call_default_factory=True))
        if name in ("epochs", "final_epochs"):
            default = ""  # depends on others, as the description says
        changes = "yes" if name in MAY_CHANGE else ""
        rows.append((f"`{name}`", _cell(field.description or ""), default, changes))
    return table(("field", "what it says", "default", "may change"), rows)


def commands() -> str:
    """Every command with its arguments and options."""
    group: Any = typer.main.get_command(app)
    parts = []
    for name, listed in group.commands.items():
        command: Any = BUILT_LATE[name]() if name in BUILT_LATE else listed
        rows = [(_spelled(param), _cell(param.help or ""), _default_of(param)) for param in command.params]
        parts += [f"## nas {name}", command.help, table(("argument or option", "what it says", "default"), rows)]
    return "\n\n".join(parts)


def result() -> str:
    """The keys of `result.json`, object by object."""
    parts = []
    for kind in _kinds(schema.Result, []):
        said = " ".join((kind.__doc__ or "").split())
        rows = [(f"`{key}`", _cell(_type(hint))) for key, hint in _hints(kind)]
        parts += [f"### {kind.__name__}", said, table(("key", "holds"), rows)]
    return "\n\n".join(parts)


def names() -> str:
    """What `import nas` gives, by autodoc."""
    parts = []
    for name, (module, attribute) in sorted(nas._WHERE.items()):
        thing = getattr(nas, name)
        kind = "autofunction" if not isinstance(thing, type) else "autoclass"
        if isinstance(thing, type) and issubclass(thing, Exception):
            kind = "autoexception"
        options = "   :members:\n" if kind == "autoclass" and name != "Request" else ""
        parts.append(f"## nas.{name}\n\n```{{eval-rst}}\n.. {kind}:: {module}.{attribute}\n{options}```")
    return "\n\n".join(parts)


PARTS: dict[str, Callable[[], str]] = {"request": request, "commands": commands, "result": result, "names": names}


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [columns, ["---"] * len(columns), *rows])


def _cell(text: str) -> str:
    """Text as it stands in a cell: what could be taken for markup is not."""
    return re.sub(r"([|<>*_\[\]{}])", r"\\\1", " ".join(text.split()))


def _default(value: Any) -> str:
    return "" if value is None or value in ((), {}) else f"`{_plain(value)}`"


def _plain(value: Any) -> Any:
    """An evaluator with its settings, as a request spells it."""
    if isinstance(value, tuple):
        return ", ".join(str(_plain(each)) for each in value)
    return str(value).lower() if isinstance(value, bool) else value


def _spelled(param: Any) -> str:
    """An argument as it is named in the help, or an option's spellings."""
    if not param.opts[0].startswith("-"):
        return f"`{param.metavar or param.opts[0].upper()}`"
    return ", ".join(f"`{each}`" for each in (*param.opts, *param.secondary_opts))


def _default_of(param: Any) -> str:
    shown = param.default
    return "" if shown is False or callable(shown) else _default(shown)


def _kinds(kind: Any, found: list[Any]) -> list[Any]:
    """An object of the schema and all that it holds, each once."""
    if kind not in found:
        found.append(kind)
        for _, hint in _hints(kind):
            for inner in _inside(hint):
                _kinds(inner, found)
    return found


def _hints(kind: Any) -> list[tuple[str, Any]]:
    from typing_extensions import get_type_hints

    return list(get_type_hints(kind).items())


def _inside(hint: Any) -> list[Any]:
    if isinstance(hint, type) and hasattr(hint, "__required_keys__"):
        return [hint]
    return [kind for argument in get_args(hint) for kind in _inside(argument)]


def _type(hint: Any) -> str:
    """A hint in words."""
    if hint is type(None):
        return "null"
    if hint is Any:
        return "any value"
    if get_origin(hint) is None:
        return {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}.get(
            hint.__name__, hint.__name__
        )
    arguments = get_args(hint)
    if get_origin(hint) is list:
        return f"list of {_type(arguments[0])}"
    if get_origin(hint) is dict:
        return f"{_type(arguments[1])} by {_type(arguments[0])}"
    if str(hint).startswith("typing.Literal"):
        return ", ".join(map(repr, arguments))
    return " or ".join(dict.fromkeys(map(_type, arguments)))
