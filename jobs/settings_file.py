"""Typed YAML files in ``conf/``: read, completed from the environment, refused with every mistake.

``${NAME}`` and ``${NAME:-default}`` in any text are replaced from the environment, or from the file
that the variable ``NAME_FILE`` names. There is no other way for a secret to get in: a password
written in the settings is refused.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from jobs.settings_table import is_duration, model_of
from udfs.definition.types import UNITS_NEEDED, Mistake, format_duration

__all__ = [
    "MASK",
    "SECRET",
    "SettingsError",
    "as_yaml",
    "checked",
    "load",
    "read",
]

T = TypeVar("T", bound=BaseModel)

MASK = "********"
_MOST_BYTES = 1_000_000
_MOST_NODES = 100_000
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
SECRET = re.compile(
    r"password|secret|token|jaas|credential|private.?key|keystore.key|account.key|api.?key|^privacy\.key",
    re.IGNORECASE,
)


class SettingsError(ValueError):
    """The settings file cannot be used; the text says where and what to write instead."""


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key written twice, of which the first would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for n, key in enumerate(keys):
            if key in keys[:n]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} is written twice", node.value[n][0].start_mark
                )
        return super().construct_mapping(node, deep)


def load(
    root: type[T],
    path: Path,
    overrides: Mapping[str, Any] | None,
    *,
    example: str,
    secrets: Collection[str],
    complete: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    across: Callable[[dict[str, Any]], Iterable[Mistake]] = lambda document: (),
) -> T:
    """Read, complete and check a settings file.

    Args:
        root: What it holds.
        path: A YAML file.
        overrides: Dotted paths and their values, e.g. ``{"model.embedded": True}``.
        example: A file to start from, named if there is none.
        secrets: Sections of free properties, in which a secret is refused.
        complete: Spells out defaults that name environment variables.
        across: What is wrong between sections, of a file that is refused already.

    Raises:
        SettingsError: The file is missing, not YAML, or refused; all mistakes are listed.
    """
    document = read(path, example=example)
    for dotted, value in (overrides or {}).items():
        _put(document, dotted, value)
    mistakes = list(_literal_secrets(document, secrets))
    document = _expand(complete(document), mistakes)
    try:
        settings = root.model_validate(document, context={UNITS_NEEDED: True})
    except ValidationError as exc:
        found = [Mistake(e["loc"], _message(e, root)) for e in _without_echoes(exc.errors())]
        mistakes += [*found, *(m for m in across(document) if m not in found)]
    if mistakes:
        lines = _lines(path)
        for dotted in overrides or {}:
            lines = {at: n for at, n in lines.items() if not _dotted(at).startswith(dotted)}
        raise SettingsError(_listed(mistakes, str(path), lines))
    return settings


def _without_echoes(errors: Sequence[Any]) -> list[Any]:
    """Without the complaint that a list is too short because its entries were refused."""
    paths = [error["loc"] for error in errors]
    return [
        e
        for e in errors
        if e["type"] != "too_short" or not any(p[:-1][: len(e["loc"])] == e["loc"] for p in paths)
    ]


def _lines(path: Path) -> dict[tuple[int | str, ...], int]:
    """The line of each setting in a file that is YAML."""
    lines: dict[tuple[int | str, ...], int] = {}

    def visit(node: yaml.Node | None, at: tuple[int | str, ...]) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                lines[*at, key.value] = key.start_mark.line + 1
                visit(value, (*at, key.value))
        elif isinstance(node, yaml.SequenceNode):
            for n, value in enumerate(node.value):
                lines[*at, n] = value.start_mark.line + 1
                visit(value, (*at, n))

    visit(yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader), ())
    return lines


def as_yaml(document: Mapping[str, Any]) -> str:
    """A file's text."""
    text: str = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100)
    return text


def read(path: Path, *, example: str) -> dict[str, Any]:
    """Read a YAML file of settings.

    Args:
        path: The file.
        example: A file to start from, named if there is none.

    Raises:
        SettingsError: It is missing, not YAML, or no mapping.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES + 1)
        if len(text) > _MOST_BYTES:
            raise SettingsError(f"{path}: larger than {_MOST_BYTES:,} bytes: no settings file is")
        _refuse_bomb(path, yaml.compose(text, yaml.SafeLoader))
        document = yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)
    except FileNotFoundError as exc:
        raise SettingsError(f"{path}: no such file; {example} is one to start from") from exc
    except OSError as exc:
        raise SettingsError(f"{path}: cannot be read: {exc.strerror}") from exc
    except (yaml.YAMLError, ValueError, RecursionError) as exc:  # ValueError: 2024-13-45
        raise SettingsError(f"{path}: not YAML: {exc}") from exc
    if not isinstance(document, dict):
        raise SettingsError(f"{path}: must be a mapping of settings, like {example}")
    return document


def _refuse_bomb(path: Path, root: yaml.Node | None) -> None:
    """Refuse anchors within anchors that would fill the memory once they are spelled out."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = _MOST_NODES + 1  # until it is known: an anchor within itself
            parts: list[yaml.Node] = []
            if isinstance(node, yaml.MappingNode):
                parts = [part for pair in node.value for part in pair]
            elif isinstance(node, yaml.SequenceNode):
                parts = node.value
            sizes[id(node)] = 1 + sum(map(size, parts))
        return sizes[id(node)]

    if root is not None and size(root) > _MOST_NODES:
        problem = f"its anchors stand for more than {_MOST_NODES:,} values"
        raise SettingsError(f"{path}: {problem}: write out what is meant")


def _put(document: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a value by its dotted path."""
    keys = dotted.split(".")
    for key in keys[:-1]:
        if not isinstance(document.get(key), dict):
            document[key] = {}
        document = document[key]
    document[keys[-1]] = value


def _expand(node: Any, mistakes: list[Mistake], path: tuple[int | str, ...] = ()) -> Any:
    """Replace ``${NAME}`` and ``${NAME:-default}`` in every text; note those that are not set."""
    if isinstance(node, dict):
        return {key: _expand(value, mistakes, (*path, key)) for key, value in node.items()}
    if isinstance(node, list):
        return [_expand(value, mistakes, (*path, n)) for n, value in enumerate(node)]
    if not isinstance(node, str):
        return node
    for match in _VARIABLE.finditer(node):
        if _value(match) is None:
            told = f"set the environment variable {match[1]}, or {match[1]}_FILE to a file's path"
            mistakes.append(Mistake(path, told))
    return _VARIABLE.sub(lambda match: _value(match) or "", node)


def _value(match: re.Match[str]) -> str | None:
    """A variable's value; as in a shell, an empty one takes the default too."""
    value = os.environ.get(match[1])
    if not value and (path := os.environ.get(f"{match[1]}_FILE")):
        value = _content(match[1], path)
    return value if value or match[2] is None else match[2]


def _content(name: str, path: str) -> str:
    """What a variable's file holds, without the newline at its end."""
    try:
        return Path(path).read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{path}, which {name}_FILE names, cannot be read: {exc}") from exc


def _literal_secrets(
    node: Any, sections: Collection[str], path: tuple[int | str, ...] = ()
) -> Iterator[Mistake]:
    """Secrets that stand in the file itself, in sections of free properties."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _literal_secrets(value, sections, (*path, str(key)))
    elif isinstance(node, list):
        for n, value in enumerate(node):
            yield from _literal_secrets(value, sections, (*path, n))
    elif node and isinstance(node, str) and path[0] in sections and SECRET.search(_dotted(path)):
        variables = list(_VARIABLE.finditer(node))
        if not variables or any(match[2] for match in variables):
            message = "a secret in the file; write ${A_NAME} and set it in the environment"
            yield Mistake(path, message)


def checked(field: FieldInfo, value: Any) -> Any:
    """A field's value as its type has it; raises pydantic's ValidationError."""
    annotation: Any = field.annotation
    return TypeAdapter(annotation).validate_python(value)


def _listed(
    mistakes: list[Mistake], source: str, lines: Mapping[tuple[int | str, ...], int]
) -> str:
    """The text of an error: every mistake on a line of its own, with its line in the file."""
    unset = {m.path for m in mistakes if m.message.startswith("set the environment variable")}
    shown = [m for m in mistakes if m.path not in unset or "environment variable" in m.message]
    rows = [f"{source}: {len(shown)} setting{'s' * (len(shown) > 1)} refused"]
    for path, message in shown:
        row = f"  {_dotted(path) or '(whole file)'}: {message}"
        while path and path not in lines:  # what is absent is told by what it is absent from
            path = path[:-1]
        rows.append(f"{row} (line {lines[path]})" if path else row)
    return "\n".join(rows)


def _dotted(path: tuple[int | str, ...]) -> str:
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in path]
    return "".join(parts).removeprefix(".")


_PLAIN_MESSAGES = {
    "missing": "required",
    "model_type": "must hold settings, one a line below it",
    "model_attributes_type": "must hold settings, one a line below it",
}


def _message(error: Any, root: type[BaseModel]) -> str:
    loc, kind = error["loc"], error["type"]
    if kind == "extra_forbidden":
        return _suggestion(loc, root)
    if kind in ("greater_than_equal", "less_than_equal") and is_duration(_field_at(loc, root)):
        limit = format_duration(error["ctx"].get("ge", error["ctx"].get("le")))
        return f"must be at {'least' if kind == 'greater_than_equal' else 'most'} {limit}"
    text: str = _PLAIN_MESSAGES.get(kind, error["msg"])
    return text.removeprefix("Value error, ")


def _suggestion(loc: tuple[int | str, ...], root: type[BaseModel]) -> str:
    known = list(_model_at(loc[:-1], root).model_fields)
    close = difflib.get_close_matches(str(loc[-1]), known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
    return f"unknown setting; {hint}"


def _field_at(loc: tuple[int | str, ...], root: type[BaseModel]) -> FieldInfo | None:
    names = [part for part in loc if isinstance(part, str)]
    return _model_at(tuple(names[:-1]), root).model_fields.get(names[-1])


def _model_at(loc: tuple[int | str, ...], root: type[BaseModel]) -> type[BaseModel]:
    model = root
    for part in loc:
        if isinstance(part, str) and part in model.model_fields:
            model = model_of(model.model_fields[part].annotation) or model
    return model
