"""A machine as Triton code for a GPU, in one of two layouts.

``across='problems'``
    A program is a block of problems, one per lane. Every value of a problem is a tensor with one
    element per lane, the state lives in registers, and the program ends when its slowest problem
    is done. Problems that are done keep what they put out.
``across='samples'``
    A program is one problem. Its samples lie across the lanes, a block of them at a time; sums are
    reduced over the block, and every value of the problem is a scalar. For few problems, and for
    those with so many samples that the step hardly counts.

The compiler must be told to fuse nothing (``enable_fp_fusion=False``): where a multiplication and
an addition may become one operation, the code says so itself. What is exact then stays exact, and
Triton's interpreter computes what the device computes, but for float32's division and ``exp2``.
Those two are the device's own, some two ulp; all other elementary functions are the CPU kernels'
(:mod:`~torchimize.kernel.elementary`): shorter than the device library's, without its branches.
"""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

from torchimize.kernel.coefficients import EXP2
from torchimize.kernel.elementary import expand
from torchimize.kernel.graph import CONDITIONS, PROBLEM, SAMPLE, Graph, Loop, Node
from torchimize.kernel.llvm import UnsupportedError
from torchimize.kernel.machine import Machine, Run, everything

ENTRIES = {0: 1, SAMPLE: 2, PROBLEM: 2, PROBLEM | SAMPLE: 3}
"""Entries of a load in the table, by what it depends on: its address; the elements from one problem
to the next; those from one sample to the next."""


@dataclass(frozen=True)
class Layout:
    """What lies across the lanes of a program.

    Attributes
    ----------
    across : str
        'problems' or 'samples'.
    lanes : int
        Problems or samples that are computed together; a power of two.
    """

    across: str
    lanes: int

    def programs(self, count: int) -> int:
        """Programs that so many problems take."""
        return -(-count // self.lanes) if self.across == "problems" else count


def source(machine: Machine, bits: int, layout: Layout) -> str:
    """The kernel ``run(table)`` as Triton code.

    ``table`` holds 64-bit integers: the number of problems, for each run its number of samples, for
    each load what :data:`ENTRIES` says; for a history an address, the elements from one problem to
    the next, and those from one entry to the next; for each output the first two of these.

    Parameters
    ----------
    machine : Machine
    bits : int
        32 or 64: the kernel's floating type.
    layout : Layout

    Raises
    ------
    UnsupportedError
        Where an operation has no code.

    Examples
    --------
    Adding up squares is done after one pass:

    >>> from torchimize.kernel.machine import Field, Machine, Output, Sums, load
    >>> graph = Graph()
    >>> sums = Sums(graph, 1)
    >>> x = load(graph, "x", PROBLEM | SAMPLE)
    >>> total = Field("total", graph.const(0.0), sums.total(0, x, x))
    >>> done = graph.const(1.0)
    >>> machine = Machine(graph, sums.runs, [total], done, [Output("sum", ["total"], "real")])
    >>> print(source(machine, 32, Layout("problems", 32)))
    import triton
    ...
            t0_0 = tl.fma(x0, x0, t0_0)
    ...
    """
    return _Kernel(machine, bits, layout).text()


@dataclass(frozen=True)
class Work:
    """Operations of one pass, by which layouts are compared.

    Attributes
    ----------
    per_sample : tuple of int
        For each run.
    sums : int
    step : int
    """

    per_sample: tuple[int, ...]
    sums: int
    step: int


def work(machine: Machine, bits: int) -> Work:
    """Count a machine's operations.

    Raises
    ------
    UnsupportedError
        Where an operation has no code.
    """
    lowered = _Lowered(machine, bits)
    per_sample = tuple(
        len(run.pairs) + sum(bool(n.depends & SAMPLE) for n in lowered.needed(_factors(run)))
        for run in machine.runs
    )
    step = lowered.needed([*(f.updated for f in machine.fields), machine.finished])
    return Work(per_sample, sum(len(run.pairs) for run in machine.runs), len(step))


_INFIX = {
    "add": "+", "sub": "-", "mul": "*", "div": "/",
    "exact_add": "+", "exact_sub": "-", "exact_mul": "*",
    "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "and": "&", "or": "|",
}  # fmt: skip
_FUNCTIONS = {
    "fma": "tl.fma", "where": "tl.where", "abs": "tl.abs", "floor": "tl.floor", "ceil": "tl.ceil",
}  # fmt: skip
_SPECIAL = frozenset(
    {"neg", "not", "sqrt", "maximum", "minimum", "isnan", "isfinite", "copysign", "trunc", "round"}
    | {"exp2", "exponent", "mantissa", "ldexp"}
)
_LEAVES = frozenset(
    {"const", "load", "state", "state_condition", "sum", "length", "carry", "carried_condition"}
    | {"loop", "loop_condition"}
)

_OUTPUT_TYPES = {
    "float64": "tl.float64", "float32": "tl.float32", "int64": "tl.int64", "int8": "tl.int8",
}  # fmt: skip


def _factors(run: Run) -> list[Node]:
    return [node for pair in run.pairs for node in pair]


def _loop_of(node: Node) -> tuple[Loop, int]:
    return cast("tuple[Loop, int]", node.value)


class _Lowered:
    """A machine's graph with elementary functions expanded, and the products that become sums' own.

    Attributes
    ----------
    expansion : dict of int to Node
        What stands for a node, by serial.
    fused : dict of int to (Node, Node, Node, str)
        For the serial of an addition or subtraction: factors and the third operand, and which of
        them is negative ('', 'product' or 'rest').
    """

    def __init__(self, machine: Machine, bits: int) -> None:
        self.graph = machine.graph
        self.bits = bits
        self.expansion: dict[int, Node] = {}
        self.fused: dict[int, tuple[Node, Node, Node, str]] = {}
        roots = [node for run in machine.runs for node in _factors(run)]
        roots += [f.updated for f in machine.fields]
        roots.append(machine.finished)
        waiting = everything(roots)
        seen = {node.serial for node in waiting}
        while waiting:
            node = waiting.pop()
            if node.op in _LEAVES or node.op in _INFIX or node.op in _FUNCTIONS:
                continue
            if node.op in _SPECIAL:
                continue
            form = expand(self.graph, node.op, node.args, bits)
            if form is None:
                raise UnsupportedError(f"{node.op!r} has no compiled form")
            self.expansion[node.serial] = form
            new = [inner for inner in everything([form]) if inner.serial not in seen]
            seen |= {inner.serial for inner in new}
            waiting += new
        self._needs = self._carried_behind(roots)
        self._fuse(roots)

    def _fuse(self, roots: list[Node]) -> None:
        """Find the products that are used once, by an addition beside them."""
        nodes = self.needed(roots)
        uses: dict[int, int] = {}
        for used in [*roots, *(part for node in nodes for part in self.parts(node))]:
            place = self.form(used).serial
            uses[place] = uses.get(place, 0) + 1
        taken: set[int] = set()
        for node in nodes:
            if node.op not in ("add", "sub"):
                continue
            a, b = map(self.form, node.args)
            # the other way round, what is taken away is the product
            for product, rest, negative in (
                (a, b, "rest" if node.op == "sub" else ""),
                (b, a, "product" if node.op == "sub" else ""),
            ):
                if (
                    product.op == "mul"
                    and uses[product.serial] == 1
                    and product.serial not in taken
                    and not (product.depends ^ node.depends) & SAMPLE
                    and self.needs(product) == self.needs(node)
                ):
                    taken.add(product.serial)
                    first, second = product.args
                    self.fused[node.serial] = first, second, rest, negative
                    break

    def form(self, node: Node) -> Node:
        """What stands for a node."""
        while node.serial in self.expansion:
            node = self.expansion[node.serial]
        return node

    def parts(self, node: Node) -> tuple[Node, ...]:
        """What the code of a node needs; for a loop all that it needs inside."""
        if node.serial in self.fused:
            return self.fused[node.serial][:3]
        if node.op in ("loop", "loop_condition"):
            loop, _ = _loop_of(node)
            assert loop.todo is not None
            return (*node.args, *loop.updated, loop.todo)
        return node.args

    def needed(self, roots: Iterable[Node]) -> list[Node]:
        """The nodes that ``roots`` need, arguments before their users; expanded ones left out."""
        done: set[int] = set()
        order: list[Node] = []
        stack = [(node, False) for node in reversed(list(roots))]
        while stack:
            node, ready = stack.pop()
            node = self.form(node)
            if ready:
                order.append(node)
            elif node.serial not in done:
                done.add(node.serial)
                stack.append((node, True))
                stack += [(inner, False) for inner in reversed(self.parts(node))]
        return order

    def _carried_behind(self, roots: list[Node]) -> dict[int, frozenset[int]]:
        known: dict[int, frozenset[int]] = {}
        for node in self.needed(roots):
            if node.op in ("carry", "carried_condition"):
                known[node.serial] = frozenset({id(_loop_of(node)[0])})
                continue
            parts = [known[self.form(part).serial] for part in self.parts(node)]
            known[node.serial] = frozenset().union(*parts)
            if node.op in ("loop", "loop_condition"):
                known[node.serial] -= {id(_loop_of(node)[0])}
        return known

    def needs(self, node: Node) -> frozenset[int]:
        """The loops whose carried values a node depends on, by identity."""
        return self._needs[self.form(node).serial]


class _Kernel:
    """Writes one kernel."""

    def __init__(self, machine: Machine, bits: int, layout: Layout) -> None:
        self.machine, self.bits, self.layout = machine, bits, layout
        self.graph: Graph = machine.graph
        self.lowered = _Lowered(machine, bits)
        self.by_problem = layout.across == "problems"
        self.shape = "(LANES,)" if self.by_problem else "()"
        self.real, self.integer = f"tl.float{bits}", f"tl.int{bits}"
        self.mantissa_bits = 23 if bits == 32 else 52
        self.bias = 127 if bits == 32 else 1023
        self.head: list[str] = []
        self.lines: list[str] = []
        self.depth = 1
        self.count = 0
        self.entry = 0
        self.values: dict[int, str] = {}
        self.constants: dict[str, str] = {}
        self.loops: dict[int, dict[int, str]] = {}
        self.strides: dict[int, str] = {}
        self.fields = {f.name: k for k, f in enumerate(machine.fields)}
        self.truths = self._truths()

    def _truths(self) -> set[Hashable]:
        """Names of the fields that are kept as truth values."""
        roots = [node for run in self.machine.runs for node in _factors(run)]
        roots += [f.updated for f in self.machine.fields]
        roots.append(self.machine.finished)
        leaves = {n.value for n in everything(roots) if n.op == "state_condition"}
        found = {f.name for f in self.machine.fields if f.updated.op in CONDITIONS}
        return found | {
            f.name for f in self.machine.fields if f.name in leaves and f.updated.op == "const"
        }

    # -- lines

    def do(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    def new(self, hint: str) -> str:
        self.count += 1
        return f"{hint}{self.count}"

    def let(self, text: str, hint: str = "v") -> str:
        name = self.new(hint)
        self.do(f"{name} = {text}")
        return name

    @contextmanager
    def within(self, header: str) -> Iterator[None]:
        self.do(f"{header}:")
        self.depth += 1
        yield
        self.depth -= 1

    # -- constants and shapes

    def _named(self, text: str) -> str:
        """A name for a constant, set once at the top."""
        if text not in self.constants:
            self.constants[text] = f"c{len(self.constants)}"
            self.head.append(f"    {self.constants[text]} = {text}")
        return self.constants[text]

    def number(self, value: float) -> str:
        """A constant of the kernel's type. Written in a formula it might be rounded to float32."""
        if self.bits == 32:
            value = ctypes.c_float(value).value
        if math.isfinite(value) and (value or math.copysign(1.0, value) > 0):
            return self._named(f"tl.full({self.shape}, {value!r}, {self.real})")
        bits = f"tl.full({self.shape}, {self.pattern(value)}, {self.integer})"
        return self._named(f"{bits}.to({self.real}, bitcast=True)")

    def pattern(self, value: float) -> int:
        """The bits of a number as a signed integer."""
        real, integer = ("<f", "<i") if self.bits == 32 else ("<d", "<q")
        if math.isnan(value):
            value = math.nan
        return cast(int, struct.unpack(integer, struct.pack(real, value))[0])

    def truth(self, value: object) -> str:
        return self._named(f"tl.full({self.shape}, {bool(value)}, tl.int1)")

    def spread(self, text: str) -> str:
        """One number for all as a value of a problem."""
        return f"tl.broadcast_to({text}, (LANES,))" if self.by_problem else text

    def zeros(self) -> str:
        return f"tl.full((LANES,), 0.0, {self.real})"

    def as_bits(self, x: str) -> str:
        return f"{x}.to({self.integer}, bitcast=True)"

    def as_real(self, x: str) -> str:
        return f"({x}).to({self.real}, bitcast=True)"

    def any_lane(self, condition: str) -> str:
        return f"tl.reduce({condition}.to(tl.int32), 0, either) != 0"

    # -- nodes

    def emit(self, roots: Iterable[Node], within: frozenset[int], samples: bool) -> None:
        """Code for all that ``roots`` need.

        Parameters
        ----------
        roots : iterable of Node
        within : frozenset of int
            The loops that the code is in.
        samples : bool
            Whether the code is in a loop over samples; outside of one, nodes that depend on the
            sample are left out.
        """
        for node in self.lowered.needed(roots):
            if node.serial in self.values or (node.depends & SAMPLE and not samples):
                continue
            if node.op != "const" and self.lowered.needs(node) <= within:
                self.values[node.serial] = self._node(node, within)

    def value_of(self, node: Node) -> str:
        """A node as numbers."""
        node = self.lowered.form(node)
        if node.op == "const":
            return self.number(cast(float, node.value))
        return self.values[node.serial]

    def condition_of(self, node: Node) -> str:
        """A node as truth values."""
        node = self.lowered.form(node)
        if node.op == "const":
            return self.truth(node.value)
        value = self.values[node.serial]
        # a value that a loop carries unchanged may have stayed a number
        return value if node.op in CONDITIONS else f"({value} != 0)"

    def typed(self, node: Node, condition: bool) -> str:
        """A node as numbers or truth values."""
        return self.condition_of(node) if condition else self.value_of(node)

    def _node(self, node: Node, within: frozenset[int]) -> str:
        if node.op in ("loop", "loop_condition"):
            loop, position = _loop_of(node)
            if id(loop) not in self.loops:
                self.loops[id(loop)] = self._loop(loop, within)
            return self.loops[id(loop)][position]
        if node.op in ("state", "state_condition"):
            name = f"s{self.fields[node.value]}"
            if (node.op == "state_condition") == (node.value in self.truths):
                return name
            return self.let(f"{name} != 0" if node.op == "state_condition" else self.cast(name))
        if node.serial in self.lowered.fused:
            a, b, rest, negative = self.lowered.fused[node.serial]
            factor, third = self.value_of(a), self.value_of(rest)
            if negative == "product":
                factor = self.negative(factor)
            elif negative:
                third = self.negative(third)
            return self.let(f"tl.fma({factor}, {self.value_of(b)}, {third})")
        op = node.op
        if op in ("and", "or"):
            sides = [self.condition_of(arg) for arg in node.args]
            if not self.by_problem and node.depends & SAMPLE:
                # Triton's interpreter loses the type of a single truth value that it spreads
                sides = [
                    text
                    if arg.depends & SAMPLE
                    else f"tl.where({text}, {self.truth(True)}, {self.truth(False)})"
                    for arg, text in zip(node.args, sides, strict=True)
                ]
            return self.let(f" {_INFIX[op]} ".join(sides))
        if op == "where":
            condition = self.condition_of(node.args[0])
            yes, no = map(self.value_of, node.args[1:])
            return self.let(f"tl.where({condition}, {yes}, {no})")
        if op == "not":
            return self.let(f"~{self.condition_of(node.args[0])}")
        args = [self.value_of(arg) for arg in node.args]
        if op in _INFIX:
            return self.let(f" {_INFIX[op]} ".join(args))
        if op in _FUNCTIONS:
            return self.let(f"{_FUNCTIONS[op]}({', '.join(args)})")
        form: str = getattr(self, f"_{op}")(*args)
        return self.let(form)

    def cast(self, text: str) -> str:
        return f"{text}.to({self.real})"

    def negative(self, x: str) -> str:
        # the minus sign would subtract from 0 in older versions, which loses the sign of a zero
        return f"{x} * {self.number(-1.0)}"

    _neg = negative

    def _sqrt(self, x: str) -> str:
        return f"tl.sqrt_rn({x})" if self.bits == 32 else f"tl.sqrt({x})"

    def _maximum(self, a: str, b: str) -> str:
        return f"tl.where({a} > {b}, {a}, {b})"

    def _minimum(self, a: str, b: str) -> str:
        return f"tl.where({a} < {b}, {a}, {b})"

    def _isnan(self, x: str) -> str:
        return f"{x} != {x}"

    def _isfinite(self, x: str) -> str:
        return f"tl.abs({x}) < {self.number(math.inf)}"

    def _copysign(self, size: str, sign: str) -> str:
        lowest = -(2 ** (self.bits - 1))
        kept = f"({self.as_bits(size)} & {-(lowest + 1)})"
        return self.as_real(f"{kept} | ({self.as_bits(sign)} & {lowest})")

    def _trunc(self, x: str) -> str:
        return self._copysign(self.let(f"tl.floor(tl.abs({x}))"), x)

    def _round(self, x: str) -> str:
        # beside 2^(bits of the mantissa) a number has no digits after the point
        large = self.number(2.0**self.mantissa_bits)
        size = self.let(f"tl.abs({x})")
        digits = self.let(f"({size} + {large}) - {large}")
        return f"tl.where({size} < {large}, {self._copysign(digits, x)}, {x})"

    def _exponent(self, x: str) -> str:
        # the exponent's bits as the low bits of a number whose last place is 1
        large = 2.0**self.mantissa_bits
        field = f"({self.as_bits(x)} >> {self.mantissa_bits}) & {2 * self.bias + 1}"
        number = self.let(self.as_real(f"({field}) | {self.pattern(large)}"))
        return f"{number} - {self.number(large + self.bias)}"

    def _mantissa(self, x: str) -> str:
        keep = ~((2 * self.bias + 1) << self.mantissa_bits)
        return self.as_real(f"({self.as_bits(x)} & {keep}) | {self.bias << self.mantissa_bits}")

    def _power(self, n: str) -> str:
        """2ⁿ for an integer within the exponents of normal numbers."""
        magic = self.number(1.5 * 2.0**self.mantissa_bits + self.bias)
        moved = self.let(f"{n} + {magic}")
        return self.as_real(f"{self.as_bits(moved)} << {self.mantissa_bits}")

    def _ldexp(self, x: str, n: str) -> str:
        # in two halves, so that neither leaves the range before the result does
        high, low = self.number(2.0 * self.bias), self.number(2.0 - 2.0 * self.bias)
        n = self.let(f"tl.where({n} > {high}, {high}, {n})")
        n = self.let(f"tl.where({n} < {low}, {low}, {n})")
        half = self.let(f"tl.floor({n} * {self.number(0.5)})")
        rest = self.let(f"{n} - {half}")
        first, second = self.let(self._power(half)), self.let(self._power(rest))
        return f"({x} * {first}) * {second}"

    def _exp2(self, t: str) -> str:
        if self.bits == 32:
            return f"tl.exp2({t})"
        # beyond these 2^n is infinite, or 0 with its polynomial
        high, low = self.number(1024.0), self.number(-1023.0)
        t = self.let(f"tl.where({t} > {high}, {high}, {t})")
        t = self.let(f"tl.where({t} < {low}, {low}, {t})")
        # adding so large a number rounds, and brings the integer to where it can be shifted
        magic = self.number(1.5 * 2.0**self.mantissa_bits)
        shifted = self.let(f"{t} + {magic}")
        rest = self.let(f"{t} - ({shifted} - {magic})")
        *others, last = EXP2[self.bits]
        total = self.number(last)
        for coefficient in reversed(others):
            total = self.let(f"tl.fma({total}, {rest}, {self.number(coefficient)})")
        moved = f"{self.as_bits(total)} + ({self.as_bits(shifted)} << {self.mantissa_bits})"
        power = self.let(self.as_real(moved))
        # a NaN's own low bits may have changed its exponent
        return f"tl.fma({t}, {self.number(0.0)}, {power})"

    # -- loops of the graph

    def _loop(self, loop: Loop, within: frozenset[int]) -> dict[int, str]:
        """Code of a loop; the results by position."""
        inside = within | {id(loop)}
        assert loop.todo is not None
        roots = [*loop.updated, loop.todo]
        # what does not depend on the loop comes before it
        self.emit(roots, within, False)
        names: dict[int, str] = {}
        for k, (initial, carried) in enumerate(zip(loop.initial, loop.carried, strict=True)):
            if carried is not initial:
                names[k] = self.let(self.typed(initial, carried.op in CONDITIONS), "w")
                self.values[carried.serial] = names[k]
        rounds = self.let("tl.full((), 0, tl.int32)", "r")
        again = self.let(self._some(loop.first), "again")
        with self.within(f"while {again}"):
            self.emit(roots, inside, False)
            fresh = {
                k: self.let(self.typed(loop.updated[k], loop.carried[k].op in CONDITIONS))
                for k in names
            }
            self.do(f"{rounds} = {rounds} + 1")
            self.do(f"{again} = ({self._some(loop.todo)}) & ({rounds} < {loop.times})")
            for k, name in names.items():
                self.do(f"{name} = {fresh[k]}")
        return names

    def _some(self, condition: Node) -> str:
        """Whether a condition holds for any problem that still runs."""
        text = self.condition_of(condition)
        return self.any_lane(f"({text} & alive)") if self.by_problem else text

    # -- sums over the samples

    def _sums(self, number: int, run: Run) -> None:
        roots = _factors(run)
        self.emit(roots, frozenset(), False)
        kept = dict(self.values)
        totals = [f"t{number}_{k}" for k in range(len(run.pairs))]
        for total in totals:
            self.do(f"{total} = {self.zeros()}")
        loads = [node for node in self.machine.loads_of(run) if node.depends & SAMPLE]
        places = {node.serial: self.let(f"p{node.serial}", "q") for node in loads}
        length = f"length{number}"
        header = f"for n in range(0, {length})"
        if not self.by_problem:
            header = f"for n in range(0, {length}, LANES)"
        with self.within(header):
            mask = ""
            if not self.by_problem:
                self.do(f"inside = (n + lane) < {length}")
                mask = ", mask=inside, other=0"
            for node in loads:
                self.do(f"x{node.serial} = {self._read(node, f'{places[node.serial]}{mask}')}")
                self.values[node.serial] = f"x{node.serial}"
            self.emit(roots, frozenset(), True)
            for total, (a, b) in zip(totals, run.pairs, strict=True):
                added = self._accumulated(a, b, total)
                if not self.by_problem:
                    added = f"tl.where(inside, {added}, {total})"
                self.do(f"{total} = {added}")
            for node in loads:
                place = places[node.serial]
                self.do(f"{place} = {place} + {self.strides[node.serial]}")
        self.values = kept
        for k, total in enumerate(totals):
            if not self.by_problem:
                total = self.let(f"tl.reduce({total}, 0, plus)")
            self.values[self.graph.leaf("sum", (number, k), PROBLEM).serial] = total

    def _accumulated(self, a: Node, b: Node, total: str) -> str:
        for factor, node in ((a, b), (b, a)):
            if factor.op == "const" and factor.value == 1.0:
                return f"{total} + {self.value_of(node)}"
        return f"tl.fma({self.value_of(a)}, {self.value_of(b)}, {total})"

    # -- the whole

    def text(self) -> str:
        self._prologue()
        self._begin()
        with self.within(f"while {self.any_lane('alive') if self.by_problem else 'alive'}"):
            for number, run in enumerate(self.machine.runs):
                if run.pairs:
                    self._sums(number, run)
            self._step()
        self._write()
        lines = [
            "import triton",
            "import triton.language as tl",
            "",
            "",
            "@triton.jit",
            "def either(a, b):",
            "    return a | b",
            "",
            "",
            "@triton.jit",
            "def plus(a, b):",
            "    return a + b",
            "",
            "",
            "@triton.jit",
            "def run(table):",
            f"    LANES: tl.constexpr = {self.layout.lanes}",
            *self.head,
            *self.lines,
        ]
        return "\n".join(lines) + "\n"

    def _prologue(self) -> None:
        """Read the table, and what does not depend on the sample."""
        machine = self.machine
        self.do(f"count = {self._following()}")
        self.do(f"once = {self._following()}.to(tl.int32)")
        self.do("lane = tl.arange(0, LANES)")
        if self.by_problem:
            self.do("number = tl.program_id(0) * LANES + lane")
            self.do("alive = number < count")
            # lanes beyond the end compute the last problem again and write nothing
            self.do("problem = tl.minimum(number.to(tl.int64), count - 1)")
        else:
            self.do("problem = tl.program_id(0).to(tl.int64)")
            self.do("alive = tl.full((), True, tl.int1)")
        for number, _ in enumerate(machine.runs):
            self.do(f"length{number} = {self._following()}.to(tl.int32)")
            length = self.let(self.spread(self.cast(f"length{number}")))
            self.values[self.graph.leaf("length", number, 0).serial] = length
        for node in machine.loads():
            self._place(node)
        if machine.history is not None:
            self._row("history", self.real)
            self.do(f"per_entry = {self._following()}")

    def _row(self, name: str, kind: str) -> None:
        """Where the problem's own part of an output begins."""
        self.do(f"{name} = {self._following()}.to(tl.pointer_type({kind}))")
        self.do(f"{name} = {name} + problem * {self._following()}")

    def _following(self) -> str:
        """The next number of the table."""
        self.entry += 1
        return f"tl.load(table + {self.entry - 1})"

    @contextmanager
    def _once(self, place: str) -> Iterator[None]:
        """A loop of one round, though the compiler does not know; afterwards a place further on.

        A block of pointers that a loop carries has no origin. With others the compiler looks at all
        that comes before and after, anew for every place in memory: minutes where there are many.
        """
        if self.by_problem:
            with self.within("for _ in range(0, once)"):
                yield
                self.do(f"{place} = {place} + 1")
        else:
            yield
            self.do(f"{place} = {place} + 1")

    def _place(self, node: Node) -> None:
        place = f"p{node.serial}"
        self.do(f"{place} = {self._following()}.to(tl.pointer_type({self._kind(node)}))")
        if node.depends & PROBLEM:
            self.do(f"{place} = {place} + problem * {self._following()}")
        if node.depends & SAMPLE:
            stride = self.let(self._following(), "stride")
            if not self.by_problem:
                self.do(f"{place} = {place} + lane * {stride}")
                stride = self.let(f"{stride} * LANES", "stride")
            self.strides[node.serial] = stride
            return
        value = self._read(node, place)
        self.values[node.serial] = name = self.let(self.zeros() if self._is_block(node) else value)
        if self._is_block(node):
            with self._once(place):
                self.do(f"{name} = {value}")

    def _is_block(self, node: Node) -> bool:
        """Whether each lane reads from a place of its own."""
        return self.by_problem and bool(node.depends & PROBLEM)

    def _kind(self, node: Node) -> str:
        """The type of a load's numbers in memory."""
        if node.value in self.machine.booleans:
            return "tl.int8"
        return "tl.float32" if node.value in self.machine.singles else self.real

    def _read(self, node: Node, place: str) -> str:
        value = f"tl.load({place})"
        if self._kind(node) != self.real:
            value = self.cast(value)
        return value if node.depends & PROBLEM else self.spread(value)

    def _begin(self) -> None:
        """The state's initial values."""
        for number, f in enumerate(self.machine.fields):
            if f.name not in self.truths:
                value = self.typed(f.initial, False)
            elif f.initial.op == "const":
                value = self.truth(f.initial.value)
            else:
                value = f"{self.typed(f.initial, False)} != 0"
            self.do(f"s{number} = {value}")

    def _step(self) -> None:
        fields = self.machine.fields
        kept = {name for output in self.machine.outputs for name in output.fields}
        roots = [*(f.updated for f in fields), self.machine.finished]
        history = self.machine.history
        self.emit(roots, frozenset(), False)
        fresh = []
        for number, f in enumerate(fields):
            if f.updated.op in ("state", "state_condition") and f.updated.value == f.name:
                continue
            value = self.typed(f.updated, f.name in self.truths)
            if self.by_problem and f.name in kept:
                # a lane goes on while others of its block do
                value = f"tl.where(alive, {value}, s{number})"
            fresh.append((number, self.let(value)))
        if history is not None:
            self.do(f"entry = s{self.fields[history.step]}.to(tl.int64)")
            self.do("going = alive")
        self.do(f"alive = alive & ~{self.condition_of(self.machine.finished)}")
        for number, name in fresh:
            self.do(f"s{number} = {name}")
        if history is not None:
            self.do("place = history + entry * per_entry")
            self._store("place", history.fields, self.real, "going")

    def _store(self, row: str, names: Iterable[Hashable], kind: str, mask: str) -> None:
        """Numbers of the state, side by side."""
        for name in names:
            value = f"s{self.fields[name]}"
            if kind != self.real or name in self.truths:
                value = f"{value}.to({kind})"
            with self._once(row):
                self.do(f"tl.store({row}, {value}, mask={mask})")

    def _write(self) -> None:
        self.do("inside = number < count" if self.by_problem else "inside = problem < count")
        for k, output in enumerate(self.machine.outputs):
            kind = _OUTPUT_TYPES.get(output.dtype, self.real)
            self._row(f"row{k}", kind)
            self._store(f"row{k}", output.fields, kind, "inside")
