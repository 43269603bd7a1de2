"""Tables and pictures as Markdown, CSV, a terminal view and one HTML file that needs no other."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from markdown_it import MarkdownIt
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from common.files import write_files
from reports.run_files import to_csv
from reports.tables import Table, printable

PAGE = Template("""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title><style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
       max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.5rem; }
table { display: block; overflow-x: auto; border-collapse: collapse; font-size: .9rem;
        font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; vertical-align: top; }
td[style*=right] { white-space: nowrap; }
img { max-width: 100%; height: auto; }
p { color: #555; font-size: .85rem; max-width: 60rem; }
</style></head>
<body>
$body</body></html>
""")
# Columns of words; all others are aligned as numbers.
WORDS = (
    *("task", "row", "hidden", "condition", "over", "method", "source", "protocol", "evidence"),
    *("data", "part of the data", "environment", "engine", "fact", "value", "usual"),
    "departs from the most frequent configuration in",
)


@dataclass(frozen=True)
class Picture:
    """A picture as PNG, with the stem of its file, its heading and how to read it."""

    name: str
    title: str
    caption: str
    png: bytes


def to_markdown(part: Table | Picture) -> str:
    """Returns a table or a picture with its heading and caption as GitHub's Markdown."""
    if isinstance(part, Picture):
        source = f"data:image/png;base64,{base64.b64encode(part.png).decode()}"
        return f"## {part.title}\n\n![{part.name}]({source})\n\n{part.caption}\n"

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"

    rule = ["---" if column in WORDS else "---:" for column in part.columns]
    lines = "".join(map(line, [part.columns, rule, *part.shown()]))
    return f"## {part.title}\n\n{lines}\n{part.caption}\n"


def to_rich(table: Table) -> RichTable:
    """Returns a table for a terminal of 80 columns: a task is a line above its rows."""
    if table.name == "notes":
        return _sentences(table)
    by_task = table.columns[0] == "task"
    shown = RichTable(
        title=_bold(table.title),
        title_justify="left",
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    for column in table.columns[by_task:]:
        if column in WORDS:
            shown.add_column(_bold(column), overflow="fold")
        else:
            heading = _bold(column.replace(" ", "\n"))
            shown.add_column(heading, justify="right", no_wrap=True)
    task = None
    for row in table.shown():
        if by_task and row[0] != task:
            task = row[0]
            if shown.rows:
                shown.add_section()
            shown.add_row(_bold(task))
        cells = zip(table.columns[by_task:], row[by_task:], strict=True)
        # A figure stands above its interval.
        shown.add_row(*[Text(v if c in WORDS else v.replace(" (", "\n(")) for c, v in cells])
    return shown


def _sentences(notes: Table) -> RichTable:
    """Returns the notes as a line each: their names are too long to stand side by side."""
    shown = RichTable.grid(padding=(0, 2))
    shown.title, shown.title_justify = _bold(f"{notes.title}\n"), "left"
    shown.add_column(justify="right")
    for note, row, task, fact, value, usual in notes.shown():
        shown.add_row(Text(note), Text(f"{row} on {task}: {fact} {value} (usual: {usual})"))
    return shown


def _bold(words: str) -> Text:
    return Text(printable(words), "bold")


def print_tables(tables: Sequence[Table], console: Console) -> None:
    """Prints tables to a terminal, with their captions."""
    for table in tables:
        console.print(to_rich(table), highlight=False)
        console.print(table.caption + "\n", style="dim", highlight=False, markup=False)


def write_report(
    folder: Path, title: str, parts: Sequence[Table | Picture], left_out: Sequence[str]
) -> None:
    """Writes report.html and report.md, the pictures, and a CSV of each table.

    `parts` are in the order of the report; `left_out` has a sentence for each run that could not be
    read.

    Raises:
        UserError: The folder cannot be written.
    """
    files: dict[str, bytes] = {}
    page, text = [f"# {title}\n"], [f"# {title}\n"]
    for part in parts:
        page.append(to_markdown(part))
        if isinstance(part, Picture):
            files[f"{part.name}.png"] = part.png
        else:
            files[f"{part.name}.csv"] = to_csv(part.records)
            text.append(page[-1])
    end = ["## Left out\n", *(f"- {printable(reason)}" for reason in left_out)] if left_out else []
    # html=False: a name that looks like HTML is shown as it is.
    renderer = MarkdownIt("commonmark", {"html": False}).enable("table")
    body = renderer.render("\n".join([*page, *end]))
    report = PAGE.substitute(title=html.escape(title), body=body)
    # A folder's name that is not UTF-8 must not stop the report.
    files["report.html"] = report.encode(errors="replace")
    files["report.md"] = ("\n".join([*text, *end]).rstrip("\n") + "\n").encode(errors="replace")
    write_files(folder, files, "give another folder as --out")
