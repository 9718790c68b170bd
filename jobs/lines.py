"""Aligned columns that adapt to the width of the terminal, so that no line is broken where it hurts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.text import Text

from zooport.jobs.output import cell

GAP = "  "
#: A remark beside its row is wrapped to this width before it goes below instead.
NARROWEST_REMARK = 40


@dataclass(frozen=True)
class _Layout:
    """Which columns stand side by side, and how wide each is.

    Attributes:
        shown: indexes of the columns.
        widths: theirs.
        width: of the terminal.
        above: index of the column that has lines of its own, None without one.
        indent: what each line of columns begins with.
    """

    shown: Sequence[int]
    widths: Sequence[int]
    width: int
    above: int | None = None
    indent: str = ""

    @property
    def used(self) -> int:
        """The width of all columns, with a gap after each."""
        return len(self.indent) + sum(self.widths) + len(GAP) * len(self.widths)

    @property
    def room(self) -> int:
        """What is left for a remark."""
        return self.width - self.used


class Lines:
    """Aligned columns, and a remark on each row: a last column where there is room, else lines below the row.

    Args:
        columns: their headings.
        right: the columns that are numbers.
        optional: the columns that are left out when the terminal is too narrow.
        above: the column that goes on a line of its own, above the rows that share its value, when the
            terminal is too narrow even without the optional columns.
        remark: heading of the remarks.
    """

    def __init__(
        self,
        *columns: str,
        right: Sequence[str] = (),
        optional: Sequence[str] = (),
        above: str = "",
        remark: str = "",
    ) -> None:
        self.columns = columns
        self.right = right
        self.optional = optional
        self.above = above
        self.remark = remark
        self.rows: list[tuple[list[Text], Text]] = []

    def add(self, *cells: Text | str, remark: Text | str = "") -> None:
        """Add a row of as many cells as there are columns."""
        self.rows.append(([_text(one) for one in cells], _text(remark)))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        layout = self._layout(options.max_width)
        has_remarks = any(remark for _, remark in self.rows)
        head = [self.columns[index] for index in layout.shown]
        head += [self.remark] if has_remarks and layout.room >= NARROWEST_REMARK else []
        if layout.above is not None:
            yield Text(self.above, style="bold")
        yield self._aligned([Text(name, style="bold") for name in head], layout)
        previous = ""
        for cells, remark in self.rows:
            heading = Text() if layout.above is None else cells[layout.above]
            if heading and heading.plain != previous:
                previous = heading.plain
                yield Text.assemble(heading, overflow="fold")
            yield from self._row([cells[index] for index in layout.shown], remark, layout, console)

    def _row(
        self, cells: Sequence[Text], remark: Text, layout: _Layout, console: Console
    ) -> Iterator[RenderableType]:
        if not remark or remark.cell_len <= layout.room:
            yield self._aligned([*cells, remark], layout)
        elif layout.room >= NARROWEST_REMARK:
            first, *rest = remark.wrap(console, layout.room)
            yield self._aligned([*cells, first], layout)
            yield from (Text(" " * layout.used).append_text(more) for more in rest)
        else:
            yield self._aligned(cells, layout)
            yield Padding(remark, (0, 0, 0, len(layout.indent) + 4), expand=False)

    def _layout(self, width: int) -> _Layout:
        """Return the first arrangement that fits, else the narrowest."""
        everything = list(range(len(self.columns)))
        widths = [self._width(index) for index in everything]
        needed = [index for index in everything if self.columns[index] not in self.optional]
        above = self.columns.index(self.above) if self.above else None

        def arranged(chosen: Sequence[int], above: int | None = None) -> _Layout:
            shown = [index for index in chosen if index != above]
            indent = "" if above is None else GAP
            return _Layout(shown, [widths[index] for index in shown], width, above, indent)

        layouts = [
            arranged(everything),
            arranged(needed),
            arranged(everything, above),
            arranged(needed, above),
        ]
        return next((one for one in layouts if one.room + len(GAP) >= 0), layouts[-1])

    def _width(self, index: int) -> int:
        return max([len(self.columns[index]), *(cells[index].cell_len for cells, _ in self.rows)])

    def _aligned(self, cells: Sequence[Text], layout: _Layout) -> Text:
        line = Text(layout.indent, overflow="fold")
        for index, width, one in zip_longest(layout.shown, layout.widths, cells):
            padding = " " * (width - one.cell_len) if width else ""
            is_number = index is not None and self.columns[index] in self.right
            line.append_text(Text.assemble(padding, one) if is_number else Text.assemble(one, padding))
            line.append(GAP)
        line.rstrip()
        return line


def _text(value: Text | str) -> Text:
    return cell(value) if isinstance(value, str) else value
