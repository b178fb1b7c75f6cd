"""Names in the settings that other programs must take."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

_NAME, _TOPIC = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", r"[A-Za-z0-9._-]{1,249}"


def _name(text: str) -> str:
    if not re.fullmatch(_NAME, text):
        raise ValueError(f"{text!r} is no name: letters, digits, dots, dashes and underscores")
    return text


def _topic(text: str) -> str:
    if not re.fullmatch(_TOPIC, text) or text in (".", ".."):
        raise ValueError(f"{text!r} is no topic: letters, digits, dots, dashes and underscores")
    return text


Name = Annotated[str, AfterValidator(_name)]
Topic = Annotated[str, AfterValidator(_topic)]
