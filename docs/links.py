"""Makes links and pictures outside docs/ work on the site as they do in a checkout."""

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OUTSIDE = re.compile(r"(!?)\[([^\]]*)\]\(((?:\.\./)+[^)#]+)([^)]*)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pictures of the benchmarks to the site."""
    for picture in sorted(ROOT.glob("benchmarks/results/**/*.png")):
        files.append(
            File(
                str(picture.relative_to(ROOT)), str(ROOT), config.site_dir, use_directory_urls=True
            )
        )
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Points pictures at their copies; names a file outside docs/ instead of linking to it."""

    def mend(found: re.Match[str]) -> str:
        picture, words, target, _ = found.groups()
        here = Path("docs", page.file.src_uri).parent
        inside = os.path.normpath(here / target)
        if picture:
            back = os.path.relpath(inside, Path(page.file.src_uri).parent)
            return f"![{words}]({back})"
        return f"{words} (`{inside}`)" if words != inside else f"`{inside}`"

    return OUTSIDE.sub(mend, markdown)
