"""What a typed settings file may hold, as a table for readers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from udfs.definition.types import duration_setting, format_duration

__all__ = ["Setting", "is_duration", "markdown", "model_of", "rows"]


class Setting(NamedTuple):
    """A row of the settings reference.

    Attributes:
        path: Dotted; ``[]`` stands for each entry of a list, ``*`` for each name.
        type: For a reader, e.g. ``duration, at least 1ms``.
        default: As it would be written, ``required`` or ``none``.
        meaning: One line, with the unit.
    """

    path: str
    type: str
    default: str
    meaning: str


def rows(root: type[BaseModel]) -> list[Setting]:
    """Every setting of a file of type ``root``."""
    return list(_rows(root, ""))


def markdown(settings: Iterable[Setting]) -> str:
    """The settings as a table in Markdown."""
    lines = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    for path, type_name, default, meaning in settings:
        shown = default if default in ("required", "none") else f"`{default}`"
        lines.append(f"| `{path}` | {type_name} | {shown} | {meaning} |")
    return "\n".join(lines) + "\n"


def _rows(model: type[BaseModel], prefix: str) -> Iterator[Setting]:
    for name, field in model.model_fields.items():
        inner = model_of(field.annotation)
        path = f"{prefix}{name}"
        origin = get_origin(field.annotation)
        each = "[]" if origin is tuple else ".*" if origin is dict else ""
        if inner is None or each or field.default is None:
            type_name = _type_name(field.annotation, tuple(field.metadata))
            yield Setting(path, type_name, _default(field), field.description or "")
        if inner is not None:
            yield from _rows(inner, f"{path}{each}.")


_TYPE_NAMES: dict[Any, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    datetime: "date and time",
    Path: "path",
}


_PLURALS = {
    "section": "sections",
    "duration or section": "durations or sections",
    "duration": "durations",
    "text": "texts",
}


def _type_name(annotation: Any, metadata: tuple[Any, ...] = ()) -> str:
    """A type in a reader's words, e.g. ``list of durations`` for ``tuple[DurationMs, ...]``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(arguments[0], (*arguments[1:], *metadata))
    if _parses_duration(metadata):
        return ", ".join(["duration", *_limits(metadata, format_duration)])
    if origin is Literal:
        return f"one of {', '.join(arguments)}"
    if origin in (Union, UnionType):
        names = [_type_name(a, metadata) for a in arguments if a is not type(None)]
        return " or ".join(dict.fromkeys(names))
    if origin is tuple:
        inner = _type_name(arguments[0])
        return f"list of {_PLURALS.get(inner, inner)}"
    if origin is dict:
        kind = "numbers" if arguments[1] is float else "text"
        return "sections by name" if model_of(arguments[1]) else f"names and their {kind}"
    if section := model_of(annotation):
        shorthand = getattr(section, "shorthand", None)
        return f"{shorthand} or section" if shorthand else "section"
    return ", ".join([_TYPE_NAMES[annotation], *_limits(metadata, "{:g}".format)])


def _limits(metadata: tuple[Any, ...], show: Any) -> list[str]:
    words = {
        annotated_types.Ge: ("at least", "ge"),
        annotated_types.Gt: ("above", "gt"),
        annotated_types.Le: ("at most", "le"),
        annotated_types.Lt: ("below", "lt"),
    }
    found = [(words[type(m)], m) for m in metadata if type(m) in words]
    return [f"{word} {show(getattr(m, attribute))}" for (word, attribute), m in found]


def _parses_duration(metadata: tuple[Any, ...]) -> bool:
    return any(isinstance(m, BeforeValidator) and m.func is duration_setting for m in metadata)


def is_duration(field: FieldInfo | None) -> bool:
    """Whether a field is written as a duration, as 10ms."""
    return field is not None and _type_name(field.annotation, tuple(field.metadata)).startswith(
        "duration"
    )


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value in (None, "", ()) or value == {}:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return format_duration(value) if is_duration(field) else str(value)


def model_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, alone or in a list; None if it holds none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for m in map(model_of, get_args(annotation)) if m), None)
