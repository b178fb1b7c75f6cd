"""Parts of an SVG drawing as text: a plot area, scales, axes, shapes with hover titles.

Every text and attribute that goes in is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps ``low .. high`` to ``start_px .. end_px``; ``low`` and ``high`` must differ."""

    low: float
    high: float
    start_px: float
    end_px: float

    def __call__(self, value: float) -> float:
        """Pixel of a value."""
        part = (value - self.low) / (self.high - self.low)
        return self.start_px + part * (self.end_px - self.start_px)


@dataclass(frozen=True, slots=True)
class Plot:
    """The plot area inside a drawing, all in the drawing's pixels."""

    width: float
    height: float
    left: float = 52.0
    top: float = 34.0
    margin_right: float = 18.0
    margin_bottom: float = 44.0

    @property
    def right(self) -> float:
        """Where the x axis ends."""
        return self.width - self.margin_right

    @property
    def bottom(self) -> float:
        """Where the x axis lies."""
        return self.height - self.margin_bottom

    def x(self, low: float, high: float) -> Scale:
        """The scale of the x axis."""
        return Scale(low, high, self.left, self.right)

    def y(self, high: float) -> Scale:
        """The scale of the y axis, from 0."""
        return Scale(0.0, high, self.bottom, self.top)


def round_ticks(high: float, most: int = 5) -> list[float]:
    """Round whole values from 0 up to the first that is not below ``high``."""
    rough = max(high, 1.0) / most
    power = 10.0 ** math.floor(math.log10(rough))
    fitting = (digit * power for digit in (1, 2, 5) if digit * power >= rough)
    step = math.ceil(next(fitting, 10 * power))
    return [float(step * i) for i in range(math.ceil(max(high, 1.0) / step) + 1)]


def y_axis(
    plot: Plot, y: Scale, ticks: Sequence[float], title: str, label: Callable[[float], str]
) -> str:
    """The y axis: a grid line and a label per tick, the title above."""
    parts = [text(0, 14, title)]
    for tick in ticks:
        parts += [
            line("grid", plot.left, y(tick), plot.right, y(tick)),
            text(plot.left - 6, y(tick) + 4, label(tick), "end"),
        ]
    return "".join(parts)


def x_axis(plot: Plot, x: Scale, ticks: Sequence[tuple[float, str]], title: str) -> str:
    """The x axis: ticks are places and labels, the title stands below."""
    parts = [line("axis", plot.left, plot.bottom, plot.right, plot.bottom)]
    for at, label in ticks:
        parts += [
            line("axis", x(at), plot.bottom, x(at), plot.bottom + 4),
            text(x(at), plot.bottom + 18, label, "middle"),
        ]
    return "".join([*parts, text(plot.right, plot.height - 6, title, "end")])


def drawing(plot: Plot, label: str, parts: Sequence[str]) -> str:
    """A whole drawing; the label is what a screen reader says."""
    box = f"0 0 {plot.width:g} {plot.height:g}"
    return tag("svg", "".join(parts), viewBox=box, role="img", aria_label=label)


def rect(cls: str, left: float, right: float, top: float, bottom: float, hover: str) -> str:
    """A rectangle with a hover text; empty if it has no height."""
    if bottom - top <= 0:
        return ""
    size = {"width": max(right - left, 0.5), "height": bottom - top}
    return tag("rect", title(hover), cls=cls, x=left, y=top, **size)


def line(cls: str, x1: float, y1: float, x2: float, y2: float) -> str:
    """A line; the class is one of the page's styles."""
    return tag("line", cls=cls, x1=x1, y1=y1, x2=x2, y2=y2)


def text(x: float, y: float, text: str, anchor: str = "start", cls: str = "") -> str:
    """A text; ``anchor`` is start, middle or end."""
    return tag("text", escape(text), cls=cls, x=x, y=y, text_anchor=anchor)


def title(text: str) -> str:
    """The hover text of the shape it is put into."""
    return tag("title", escape(text))


def tag(name: str, content: str = "", **attributes: float | str) -> str:
    """An element; ``content`` is markup, attributes are escaped, ``cls`` is the class."""
    written = "".join(
        f' {"class" if key == "cls" else key.replace("_", "-")}="{_attribute(value)}"'
        for key, value in attributes.items()
        if value != ""
    )
    return f"<{name}{written}>{content}</{name}>"


def _attribute(value: float | str) -> str:
    return escape(value) if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")
