"""The version stands in one place, and what is written about it agrees."""

from pathlib import Path

import yaml

import datxai

ROOT = Path(__file__).parents[1]


def test_citation_and_changelog_are_of_this_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == datxai.__version__
    assert f"\n## {datxai.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()
