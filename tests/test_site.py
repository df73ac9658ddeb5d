"""The site: built by one command, every link leads somewhere, nothing is fetched, every public name is in it."""

import ast
import re
import subprocess
import sys
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "datxai"
HIDDEN = {"commands", "stages", "cli", "compose", "order", "help", "__main__"}  # reached by the words of the command
FETCHES = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src"}


class Page(HTMLParser):
    """What a page names, and what it refers to."""

    def __init__(self, path):
        super().__init__()
        self.names, self.links, self.fetched, self.alts = set(), set(), set(), []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.names |= {given.get("id"), given.get("name")}
        if tag == "a" and given.get("href"):
            self.links.add(given["href"])
        if tag in FETCHES and given.get(FETCHES[tag]) and given.get("rel") != "canonical":
            self.fetched.add(given[FETCHES[tag]])
        if tag == "img":
            self.alts.append(given.get("alt"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built strictly: warnings of MkDocs, of which a link that leads nowhere is one, are errors."""
    for name in ("mkdocs", "material", "mkdocstrings", "nbconvert"):
        pytest.importorskip(name, reason="the site needs pip install 'datxai[docs]'")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", out]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert answer.returncode == 0, answer.stderr
    return {path.relative_to(out).as_posix(): Page(path) for path in out.rglob("*.html")}, out


def test_every_link_leads_somewhere(site):
    pages, out = site
    for name, page in pages.items():
        for link in page.links | page.fetched:
            parts = urlsplit(link)
            if parts.scheme or name == "404.html":  # which a server shows from any place
                continue
            target = (out / name).parent / unquote(parts.path) if parts.path else out / name
            assert target.exists(), (name, link)
            if parts.fragment and target.suffix == ".html":
                assert unquote(parts.fragment) in pages[target.resolve().relative_to(out).as_posix()].names, (
                    name,
                    link,
                )


def test_nothing_is_fetched_from_elsewhere(site):
    for name, page in site[0].items():
        assert not {link for link in page.fetched if urlsplit(link).netloc}, name
        assert "googleapis" not in (site[1] / name).read_text()


def test_every_picture_has_words(site):
    for name, page in site[0].items():
        assert all(page.alts), name


@pytest.fixture(scope="module")
def address(site):
    """Where the site is served."""
    handler = partial(QuietHandler, directory=site[1])
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_the_search_finds_a_word(address, open_page):
    page = open_page(f"{address}/index.html")
    page.locator("input[name=query]").fill("canonizer")
    page.locator("a.md-search-result__link").first.wait_for()
    assert "anonizer" in page.locator(".md-search-result__list").inner_text()


@pytest.mark.parametrize("colour_scheme", ["light", "dark"])
def test_pages_can_be_read_by_all(address, open_page, colour_scheme):
    """By axe-core; what it calls moderate or minor is the theme's."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    for name in ("index.html", "gallery.html", "gallery/ledger.html", "glossary.html", "reference/metrics.html"):
        found = axe.Axe().run(open_page(f"{address}/{name}", color_scheme=colour_scheme)).response
        assert found["passes"]
        assert not [(name, one["id"], one["nodes"][0]["html"]) for one in found["violations"]
                    if one["impact"] in ("serious", "critical")]  # fmt: skip


def public_names(path):
    """Classes and functions of a module, and the methods of public classes, without a leading underscore."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
            yield node.name, node
            for inner in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                    yield f"{node.name}.{inner.name}", inner


def test_every_public_name_is_in_the_reference(site):
    known = set().union(*(page.names for name, page in site[0].items() if name.startswith("reference/")))
    missing = []
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if {*module.split(".")} & HIDDEN or any(part.startswith("_") for part in module.split(".")):
            continue
        missing += [f"{module}.{name}" for name, node in public_names(path)
                    if ast.get_docstring(node) and f"{module}.{name}" not in known]  # fmt: skip
    assert missing == []


def test_every_word_that_pages_explain_is_in_the_glossary():
    text = (ROOT / "docs/glossary.md").read_text()
    terms = re.findall(r"^\*\*(.+?)\*\*:", text, re.MULTILINE)
    assert terms == sorted(terms, key=str.lower)
    words = {word.strip() for term in terms for word in term.split(",")}
    assert {"ipsilateral", "SBR", "hottest voxels", "seed", "ledger", "composite", "canonizer", "LRP"} <= words
    for name in re.findall(r"\*([\w ]+?)\*(?!\*)", re.sub(r"\*\*.+?\*\*", "", text)):
        assert name.lower() in {word.lower() for word in words}, name


def test_links_of_the_readme_lead_somewhere():
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"):
        for link in re.findall(r"\]\(([^)#]+)", path.read_text()):
            assert "://" in link or (ROOT / link).exists(), (path.name, link)


def test_links_of_the_docs_lead_somewhere_where_they_lie():
    for path in (ROOT / "docs").glob("*.md"):
        text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
        for link in re.findall(r"\]\(([^)#\s]+)", text):
            assert "://" in link or (path.parent / link).exists(), (path.name, link)
    for path in (ROOT / "examples/gallery").glob("*.py"):
        for link in re.findall(r"\]\(([^)#\s]+\.md)", path.read_text()):
            assert (path.parent / link).exists(), (path.name, link)
