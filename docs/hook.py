"""What the site has beside docs/*.md: the pages of the gallery, the reference of the code, and files of the project.

MkDocs calls the functions here (`hooks` in mkdocs.yml). Pages link to files of the project as they lie there, so that
the links work on a code host too; `on_page_markdown` turns them to the site's own pages.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
MADE = ROOT / "build" / "gallery"  # by examples/gallery.py
FILES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
INNER = {"commands", "stages", "conf", "cli", "order", "compose", "help"}  # of the command: reached by its words
LISTED = re.compile(r"\(\.\./examples/gallery/(\w+)\.py\)")
PICTURES: dict[str, str] = {}  # the first of each page, once the pages are made
NOT_RUN = "\n!!! note\n    This page was not run when the site was built; `make docs` runs it.\n"
LINKS = [  # as they stand in docs/, and where they lead on the site
    (re.compile(r"\((?:\.\./)+examples/gallery/(\w+)\.py"), r"(gallery/\1.md"),
    (re.compile(r"\((?:\.\./)*docs/"), "("),
    *((re.compile(rf"\((?:\.\./)*{name}"), f"({page}") for name, page in FILES.items()),
]


def on_files(files, config):
    """Add the pages that are not in docs/, and name them in the navigation."""
    gallery, sections = (
        [],
        dict(pair for entry in config.nav for pair in (entry.items() if isinstance(entry, dict) else ())),
    )
    runner = _load_gallery()
    for name in LISTED.findall((ROOT / "docs" / "gallery.md").read_text()):
        gallery.append(f"gallery/{name}.md")
        for path, content in _make_page(runner, name):
            files.append(File.generated(config, path, content=content))
    reference = []
    for path, content in _make_reference():
        files.append(File.generated(config, path, content=content))
        reference.append(path)
    for name, page in FILES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text()))
    sections["Gallery"] += [path for path in gallery if path not in sections["Gallery"]]
    sections["Reference"] += [path for path in [*reference, *FILES.values()] if path not in sections["Reference"]]
    return files


def on_page_markdown(markdown, page, **_):
    """Turn links to files of the project to pages of the site; show pictures in the gallery's list."""
    up = "../" * page.file.src_uri.count("/")
    for pattern, target in LINKS:
        markdown = pattern.sub(target.replace("(", f"({up}", 1), markdown)
    markdown = re.sub(r"^```(\w+) .+$", r"```\1", markdown, flags=re.MULTILINE)  # words for the tests
    if page.file.src_uri == "gallery.md":
        markdown = _add_pictures(markdown)
    return markdown


def on_post_page(output, **_):
    """Give the theme's search, a dialog, the name that readers of screens need."""
    dialog = 'data-md-component="search" role="dialog"'
    return output.replace(dialog, f'{dialog} aria-label="Search"')


def _load_gallery():
    spec = importlib.util.spec_from_file_location("gallery", ROOT / "examples" / "gallery.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _make_page(runner, name: str) -> Iterator[tuple[str, str | bytes]]:
    """A page of the gallery with its pictures, its script, and its notebook."""
    import nbformat
    from nbconvert import MarkdownExporter

    made, script = MADE / f"{name}.ipynb", ROOT / "examples" / "gallery" / f"{name}.py"
    notebook = nbformat.read(made, as_version=4) if made.is_file() else runner.read_page(name)
    body, resources = MarkdownExporter().from_notebook_node(notebook, {"unique_key": name, "output_files_dir": name})
    title = re.search(r"^# (.+)$", body, re.MULTILINE)[1]
    body = body.replace("![png](", f"![{title}](")
    body = re.sub(r"<style scoped>.*?</style>", "", body, flags=re.DOTALL).replace("<th></th>", "<td></td>")
    links = f"\n[Script]({name}.py) · [Notebook]({name}.ipynb)\n" + ("" if made.is_file() else NOT_RUN)
    yield f"gallery/{name}.md", body.replace(f"# {title}\n", f"# {title}\n{links}", 1)
    yield f"gallery/{name}.py", script.read_text()
    yield f"gallery/{name}.ipynb", nbformat.writes(notebook)
    PICTURES.update({name: min(resources["outputs"], key=_order)} if resources["outputs"] else {})
    for path, content in resources["outputs"].items():
        yield f"gallery/{Path(path).as_posix()}", content


def _order(path: str) -> list[int]:
    """Cell and output of a picture, from its name."""
    return [int(number) for number in re.findall(r"_(\d+)", path)]


def _make_reference() -> Iterator[tuple[str, str]]:
    """A page for each room of the package, and one for the modules beside them."""
    package = ROOT / "datxai"
    rooms: dict[str, list[str]] = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        if parts[0] not in INNER and not any(part.startswith("_") for part in parts):
            rooms.setdefault(parts[0] if len(parts) > 1 else "datxai", []).append(".".join(("datxai", *parts)))
    for room, modules in sorted(rooms.items(), key=lambda item: (item[0] != "datxai", item[0])):
        title = "datxai" if room == "datxai" else f"datxai.{room}"
        listed = "\n\n".join(f"::: {name}" for name in modules)
        yield f"reference/{room}.md", f"# {title}\n\n{listed}\n"


def _add_pictures(markdown: str) -> str:
    """The items of the gallery's list as cards, with the first picture of each page."""

    def card(match: re.Match) -> str:
        title, name, text = match.groups()
        shown = f"[![{title}](gallery/{PICTURES[name]})](gallery/{name}.md)\n\n    " if name in PICTURES else ""
        return f"- {shown}**[{title}](gallery/{name}.md)**\n\n    {text}\n"

    markdown = re.sub(r"^- \[(.+?)\]\(gallery/(\w+)\.md\): (.*)$", card, markdown, flags=re.MULTILINE)
    return re.sub(r"(^- .+?)(?=\n## |\Z)", r'<div class="grid cards" markdown>\n\n\1\n</div>\n', markdown,
                  flags=re.MULTILINE | re.DOTALL)  # fmt: skip
