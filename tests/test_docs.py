"""Every example of the pages runs and prints what the page says; tables of codes are complete."""

from __future__ import annotations

import doctest
import importlib.util
import math
import re
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path

import numpy as np
import pytest
import torch

from torchimize import CovarianceStatus, Status
from torchimize.kernel import driver
from torchimize.kernel.elementary import ALIASES, RANGE, ULP
from torchimize.kernel.graph import CONDITIONS, PROBLEM, Graph
from torchimize.kernel.llvm import Target, UnsupportedError, source
from torchimize.kernel.lowerings.context import MAX_UNROLLED
from torchimize.kernel.machine import Field, Machine, Output, load
from torchimize.kernel.torch_ops import OPERATIONS
from torchimize.lsq.fused import kernels, plan

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
    assert stems >= {
        "README", "quickstart", "guide", "engines", "functional", "migration", "algorithm"
    }  # fmt: skip


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


def section_of(page: str, label: str) -> str:
    """What stands between ``.. _label:`` and the next label."""
    text = (ROOT / "docs" / f"{page}.rst").read_text(encoding="utf-8")
    return text.split(f".. _{label}:", 1)[1].split("\n.. _", 1)[0]


def arguments_in_words(ranges: dict[int, tuple[float, float]]) -> str:
    (low, high), double = ranges[32], ranges[64]
    if double != (low, high):
        assert low == -high and double[0] == -double[1]
        return f"abs(x) ≤ 2^{math.log2(high):.0f}; in float64 2^{math.log2(double[1]):.0f}"
    if (low, high) == (-math.inf, math.inf):
        return "all"
    if high == math.inf:
        # a logarithm is infinite at the end of its range, acosh is not
        return f"x {'≥' if low == 1 else '>'} {low:.0f}".replace("-", "−")
    assert low == -high
    return f"abs(x) ≤ {high:.0f}"


def test_the_table_of_compiled_functions_is_true_and_complete() -> None:
    rows = re.findall(
        r"^(``[^=]*?``)  +(\S.*?)  +([\d.]+) +([\d.]+)$",
        section_of("engines", "compiled-functions"),
        re.MULTILINE,
    )
    met = {
        name: (arguments, float(single), float(double))
        for names, arguments, single, double in rows
        for name in re.findall(r"``(\w+)``", names)
    }
    # what stands for a model's own exp is told in the text
    wanted = {
        op: (arguments_in_words(RANGE[op]), ulp[32], ulp[64])
        for op, ulp in ULP.items()
        if op != "exp"
    }
    assert met == wanted


def is_compiled(op: str, count: int) -> bool:
    graph = Graph()
    arguments = [load(graph, k, PROBLEM) for k in range(count)]
    if op in ("and", "or", "not", "where"):
        arguments[0] = graph.apply("gt", arguments[0], graph.const(0.0))
    if op in ("and", "or"):
        arguments[1] = graph.apply("lt", arguments[1], graph.const(0.0))
    node = graph.apply(op, *arguments)
    if node.op in CONDITIONS:
        node = graph.where(node, graph.const(1.0), graph.const(2.0))
    field = Field("out", graph.const(0.0), node)
    machine = Machine(graph, [], [field], graph.const(1.0), [Output("out", ["out"], "real")])
    try:
        source(machine, Target(bits=64, lanes=2))
    except UnsupportedError:
        return False
    return True


def number_of_arguments(op: str) -> int:
    if op == "where":
        return 3
    for count in (1, 2):
        values = [torch.full((1,), 0.5, dtype=torch.float64)] * count
        try:
            OPERATIONS[op](*values)
        except TypeError:
            continue
        return count
    raise AssertionError(f"{op} takes neither one nor two arguments")


def test_the_functions_without_compiled_form_are_named() -> None:
    paragraph = section_of("engines", "not-compiled").split(">>>", 1)[0]
    named = set(re.findall(r"``(\w+)``", paragraph)) - {"polygamma"}
    missing = {op for op in OPERATIONS if not is_compiled(op, number_of_arguments(op))}
    # what only derivatives are made of, and the orders of polygamma
    missing = {op for op in missing if not op.endswith("_slope") and op[:-1] != "polygamma"}
    assert named == missing
    assert "erfcx" in named and not named & {*ULP, *ALIASES}


@pytest.mark.parametrize(
    ("page", "sentence"),
    [
        ("engines", f"more than {plan.MAX_PARAMS} parameters"),
        ("engines", f"With more than {plan.FEW_PARAMS} parameters"),
        ("engines", f"over at most {MAX_UNROLLED} elements"),
        ("engines", f"the last {kernels.KEPT_KERNELS} kernels"),
        ("engines", f"of {driver.MIN_CHUNK} to {driver.MAX_CHUNK:,} problems"),
    ],
)
def test_limits_are_those_of_the_code(page: str, sentence: str) -> None:
    text = (ROOT / "docs" / f"{page}.rst").read_text(encoding="utf-8")
    assert sentence in " ".join(text.split())
