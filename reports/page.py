"""Tables and pictures as Markdown, CSV, a terminal view and one HTML file that needs no other."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from reports.records import to_csv
from reports.tables import Table, printable

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
       max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: left; border-bottom: 1px solid #ddd;
         vertical-align: top; }
th { border-bottom: 2px solid #555; } td.number, th.number { text-align: right; }
td.number { white-space: nowrap; }
tr.first td { border-top: 2px solid #999; }
img { max-width: 100%; height: auto; }
p.caption { color: #555; font-size: .85rem; max-width: 60rem; }
.apart { border: 2px dashed #999; padding: 0 1rem 1rem; margin-top: 2.5rem; }
.apart table { font-size: .8rem; }
"""
# Columns of words; all others are aligned as numbers.
WORDS = (
    *("task", "row", "condition", "over", "method", "source", "protocol", "evidence"),
    *("data", "part of the data", "environment", "engine", "fact", "value", "usual"),
)


@dataclass(frozen=True)
class Picture:
    """A picture with the figures that it shows.

    Attributes:
        name: Stem of its files.
        title: What it shows, in a few words.
        caption: How to read it.
        png: The picture.
        records: Figures for a CSV; none where a table has them.
    """

    name: str
    title: str
    caption: str
    png: bytes
    records: list[dict[str, Any]] = field(default_factory=list)


def to_markdown(table: Table) -> str:
    """Returns a table with its heading and caption as GitHub's Markdown."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = ["---" if _is_words(column) else "---:" for column in table.columns]
    lines = [f"## {table.title}", "", line(table.columns), line(rule), *map(line, table.shown())]
    return "\n".join([*lines, "", table.caption, ""])


def to_rich(table: Table) -> RichTable:
    """Returns a table for a terminal of 80 columns: a task is a line above its rows."""
    by_task = table.columns[0] == "task"
    shown = RichTable(title=_text(table.title), title_justify="left", box=SIMPLE_HEAD)
    for column in table.columns[by_task:]:
        if _is_words(column):
            shown.add_column(_text(column), overflow="fold")
        else:
            shown.add_column(_text(column.replace(" ", "\n")), justify="right", no_wrap=True)
    task = None
    for row in table.shown():
        if by_task and row[0] != task:
            task = row[0]
            if shown.rows:
                shown.add_section()
            shown.add_row(_text(task))
        cells = zip(table.columns[by_task:], row[by_task:], strict=True)
        # A figure stands above its interval.
        shown.add_row(*[Text(v if _is_words(c) else v.replace(" (", "\n(")) for c, v in cells])
    return shown


def _text(words: str) -> Text:
    return Text(printable(words), "bold")


def print_tables(tables: Sequence[Table], console: Console) -> None:
    """Prints tables to a terminal, with their captions."""
    for table in tables:
        console.print(to_rich(table), highlight=False)
        console.print(table.caption + "\n", style="dim", highlight=False, markup=False)


def to_html(
    title: str, parts: Sequence[Table | Picture], left_out: Sequence[str], apart: Table | None
) -> str:
    """Returns one page that holds all it needs, pictures included.

    Args:
        title: Its heading.
        parts: Tables and pictures, in the order in which they are to be read.
        left_out: A sentence for each run that could not be read.
        apart: Published scores, set apart from the other tables.
    """
    body = [f"<h1>{html.escape(title)}</h1>"]
    for part in parts:
        body.append(_html_picture(part) if isinstance(part, Picture) else _html_table(part))
    if left_out:
        items = "".join(f"<li>{html.escape(printable(reason))}</li>" for reason in left_out)
        body.append(f"<h2>Left out</h2><ul>{items}</ul>")
    if apart is not None:
        body.append(f'<div class="apart">{_html_table(apart)}</div>')
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _is_words(column: str) -> bool:
    return column in WORDS or column.startswith("departs")


def _html_table(table: Table) -> str:
    classes = ["" if _is_words(column) else ' class="number"' for column in table.columns]

    def cells(tag: str, values: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{css}>{html.escape(value)}</{tag}>"
            for css, value in zip(classes, values, strict=True)
        )

    rows, before = [], None
    for row in table.shown():
        repeated = table.columns[0] == "task" and row[0] == before
        first = table.columns[0] == "task" and not repeated
        shown = ["" if repeated else row[0], *row[1:]]
        rows.append(("<tr class='first'>" if first else "<tr>") + cells("td", shown) + "</tr>")
        before = row[0]
    return (
        f"<h2>{html.escape(table.title)}</h2>\n"
        f"<div class='wide'><table><thead><tr>{cells('th', table.columns)}</tr></thead>\n"
        f"<tbody>\n{chr(10).join(rows)}\n</tbody></table></div>\n"
        f'<p class="caption">{html.escape(table.caption)}</p>'
    )


def _html_picture(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode()
    return (
        f"<h2>{html.escape(picture.title)}</h2>\n"
        f'<img alt="{html.escape(picture.title)}" src="data:image/png;base64,{data}">\n'
        f'<p class="caption">{html.escape(picture.caption)}</p>'
    )


def write_report(
    folder: Path,
    title: str,
    parts: Sequence[Table | Picture],
    left_out: Sequence[str],
    apart: Table | None,
) -> None:
    """Writes report.html and report.md, the pictures, and a CSV of each part with figures.

    Args:
        folder: Where to; made if need be.
        title: Heading of the report.
        parts: Tables and pictures, in the order in which they are to be read.
        left_out: A sentence for each run that could not be read.
        apart: Published scores, set apart from the other tables.

    Raises:
        OSError: The folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page = to_html(title, parts, left_out, apart)
    sections = [f"# {title}\n", *(to_markdown(part) for part in parts if isinstance(part, Table))]
    if left_out:
        items = [f"- {printable(reason)}" for reason in left_out]
        sections.append("\n".join(["## Left out", "", *items, ""]))
    sections += [to_markdown(apart)] if apart is not None else []
    # A name of a folder that is no UTF-8 must not cost the report.
    for name, text in (("report.html", page), ("report.md", "\n".join(sections))):
        (folder / name).write_text(text, encoding="utf-8", errors="replace")
    for part in parts if apart is None else [*parts, apart]:
        if part.records:
            text = to_csv(part.records)
            (folder / f"{part.name}.csv").write_text(text, encoding="utf-8", errors="replace")
        if isinstance(part, Picture):
            (folder / f"{part.name}.png").write_bytes(part.png)
