"""The docs are correct where a test can check it: links, and the code that readers copy."""

import re
from pathlib import Path

import pytest

from tests.contract.metric_table import registered

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "SECURITY.md", *(ROOT / "docs").rglob("*.md")])
_CODE = re.compile(r"^```.*?^```$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")


def _anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub builds them."""
    headings = re.findall(r"(?m)^#+ (.+)$", page.read_text())
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_have_a_target(page: Path) -> None:
    broken = []
    for path, anchor in _LINK.findall(_CODE.sub("", page.read_text())):
        target = (page.parent / path) if path else page
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            broken.append(f"{path}#{anchor}" if anchor else path)

    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page: Path) -> None:
    named = re.findall(r"`((?:services|shared|tests|deploy|docs)/[\w./-]+)`", page.read_text())

    assert [path for path in named if not (ROOT / path).exists()] == []


def test_m13_the_page_of_metrics_lists_every_metric_with_its_labels_and_type() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    listed = set(
        re.findall(r"(?m)^\| `(\w+)(?:{([\w,]+)})?` \| (counter|gauge|histogram) \|", page)
    )

    assert {(name, ",".join(labels), type_) for name, labels, type_ in registered()} == listed


def test_the_index_links_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    linked = {(ROOT / "docs" / path).resolve() for path, _ in _LINK.findall(index) if path}

    assert {page for page in PAGES if page.is_relative_to(ROOT / "docs")} - linked == {
        ROOT / "docs" / "README.md"
    }
