"""Every example of the pages runs and prints what the page says; tables of codes are complete."""

from __future__ import annotations

import doctest
import importlib.util
import re
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path

import numpy as np
import pytest
import torch

from torchimize import CovarianceStatus, Status

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.rst", *sorted((ROOT / "docs").glob("*.rst"))]
PAGES_TO_RUN = [page for page in PAGES if ">>> " in page.read_text(encoding="utf-8")]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.fixture(autouse=True)
def plain_printing() -> Iterator[None]:
    """NumPy's and torch's own print options, whatever a page or another test sets."""
    torch.set_printoptions(profile="default")
    with np.printoptions(precision=8, suppress=False, linewidth=75, threshold=1000):
        yield


def examples(page: Path) -> doctest.DocTest:
    """A page's examples, in order, in one namespace.

    lmfit is no requirement of the tests: where it is missing, the examples that name it are left
    out.
    """
    name = str(page.relative_to(ROOT))
    test = doctest.DocTestParser().get_doctest(
        page.read_text(encoding="utf-8"), {"__name__": "__main__"}, name, str(page), 0
    )
    if importlib.util.find_spec("lmfit") is None:
        test.examples = [example for example in test.examples if "lmfit" not in example.source]
    return test


@pytest.mark.parametrize("page", PAGES_TO_RUN, ids=lambda page: page.stem)
def test_examples(page: Path) -> None:
    test = examples(page)
    report: list[str] = []
    outcome = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=report.append)
    assert outcome.failed == 0, "".join(report)
    assert outcome.attempted == len(test.examples) > 0


def test_pages_with_examples_are_found() -> None:
    stems = {page.stem for page in PAGES_TO_RUN}
    assert stems >= {"README", "quickstart", "guide", "functional", "migration", "algorithm"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_python_code_escapes_the_run(page: Path) -> None:
    """A block of code that is not shell is made of prompts, so the test above runs it."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^\.\. code-block:: *(\S*)$", text, re.MULTILINE)
    assert set(blocks) <= {"console", "text"}
    assert not re.search(r"doctest: *\+SKIP", text)
    # A literal block after "::" would be shown as code and not run.
    assert not re.search(r"^(?!\.\. ).*::$", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("page", "label", "table"),
    [("guide", "statuses", Status), ("guide", "covariance-statuses", CovarianceStatus)],
)
def test_tables_of_codes_are_complete(page: str, label: str, table: type[IntEnum]) -> None:
    """The table after ``.. _label:`` has a row ``code``, ``NAME`` for each member, and no other."""
    text = (ROOT / "docs" / f"{page}.rst").read_text(encoding="utf-8")
    section = text.split(f".. _{label}:", 1)[1].split(".. _", 1)[0]
    rows = re.findall(r"^   \* - (−?\d+)\n     - ``(\w+)``$", section, re.MULTILINE)
    met = {(int(code.replace("−", "-")), name) for code, name in rows}
    assert met == {(int(member), member.name) for member in table}
    assert len(rows) == len(table)


def test_relative_links_of_the_readme_lead_somewhere() -> None:
    text = (ROOT / "README.rst").read_text(encoding="utf-8")
    links = re.findall(r"<((?!https?:)[^<>\s]+)>`_", text)
    missing = [link for link in links if not (ROOT / link).exists()]
    assert links
    assert not missing
