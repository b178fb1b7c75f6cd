"""Whether a setting that holds a field or a formula can be read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from udfs.definition.types import Mistake
from udfs.features.formulas import FormulaError, Kind, parse

_EXAMPLES = {"truth": "amount > 100"}


def unreadable(
    path: tuple[int | str, ...], text: str, kinds: Mapping[str, Kind], wanted: Kind = "number"
) -> Iterator[Mistake]:
    """The mistake of a text that is neither a field nor a formula, or yields something else.

    Args:
        path: Where it is.
        text: A field's name, which may be no formula, or a formula.
        kinds: What it may read, by name.
        wanted: What it must yield; a truth is a number too.
    """
    try:
        found = kinds[text] if text in kinds else parse(text, kinds).kind
    except FormulaError as exc:
        yield Mistake(path, str(exc))
        return
    if found != wanted and (found, wanted) != ("truth", "number"):
        example = _EXAMPLES.get(wanted, "amount / 100")
        yield Mistake(path, f"{text!r} yields a {found}, not a {wanted}; write one like {example}")
