"""A machine as LLVM code for a CPU: one problem per vector lane.

Lane w of every vector register belongs to one problem, so no reduction ever crosses lanes. A lane
whose problem is done writes its outputs and loads the next problem in place: no lane waits for the
slowest of a block. Everything is inlined, elementary functions too, since a call would spill all
accumulators. Denormal numbers are flushed to zero inside the kernel.

Up to :attr:`Target.accumulators` products are summed in registers. With more, the factors of a few
samples at a time go to a buffer in the first-level cache, and the products are summed in register
tiles from there.

The code is written as text: building it as Python objects first took longer than compiling it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

from torchimize.kernel.coefficients import EXP2
from torchimize.kernel.elementary import expand
from torchimize.kernel.graph import CONDITIONS, PROBLEM, SAMPLE, Graph, Loop, Node
from torchimize.kernel.machine import History, Machine, Run, everything

BLOCK = 16
"""Samples whose factors are buffered at a time."""

AHEAD = 8
"""A row of samples is fetched into the cache that many refills before it is needed."""

PACKED = 8
"""Samples that are copied into the work buffer in one round of a loop; a power of two."""

UNROLLED = 4
"""Longest run of scalars that is copied without a loop."""


class UnsupportedError(Exception):
    """An operation has no code; the message names it."""


@dataclass(frozen=True)
class Target:
    """What code is made for.

    Attributes
    ----------
    bits : int
        32 or 64: the kernel's floating type.
    lanes : int
        Problems per vector.
    scalef : bool
        The processor scales by powers of two in one instruction (AVX-512).
    x86 : bool
        Denormals are switched off through MXCSR.
    accumulators : int
        Sums that are kept in registers.
    tile : int
        Rows and columns of a register tile.
    """

    bits: int
    lanes: int
    scalef: bool = False
    x86: bool = True
    accumulators: int = 24
    tile: int = 4

    @property
    def bytes(self) -> int:
        """Size of a vector."""
        return self.bits // 8 * self.lanes


def source(machine: Machine, target: Target) -> str:
    """The kernel ``int64 run(table, begin, end, work)`` as LLVM assembly.

    ``table`` holds 64-bit integers: for each run its number of samples, for each load what
    :data:`ENTRIES` says, for each output an address and the bytes from one problem to the next, for
    a history these and the bytes from one entry to the next.
    ``work`` is aligned to a vector. Returns the number of passes over the samples.

    Raises
    ------
    UnsupportedError
        Where an operation has no code.
    """
    return _Kernel(machine, target).text()


ENTRIES = {0: 1, SAMPLE: 1, PROBLEM: 2, PROBLEM | SAMPLE: 4}
"""Entries of a load in the table, by what it depends on: its address; the bytes from one problem to
the next; those from one sample to the next; its place in ``work``, in bytes. Samples shared by all
problems lie side by side."""


class _Code:
    """Lines of assembly with numbered values."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.entry: list[str] = []
        self.declared: dict[str, str] = {}
        self.count = 0
        self.block = "entry"

    def value(self, text: str) -> str:
        self.count += 1
        name = f"%v{self.count}"
        self.lines.append(f"  {name} = {text}")
        return name

    def do(self, text: str) -> None:
        self.lines.append(f"  {text}")

    def new_label(self, hint: str) -> str:
        self.count += 1
        return f"{hint}{self.count}"

    def label(self, name: str) -> None:
        self.lines.append(f"{name}:")
        self.block = name

    def jump(self, name: str) -> None:
        self.do(f"br label %{name}")

    def branch(self, condition: str, yes: str, no: str) -> None:
        self.do(f"br i1 {condition}, label %{yes}, label %{no}")

    def alloca(self, text: str) -> str:
        self.count += 1
        name = f"%a{self.count}"
        self.entry.append(f"  {name} = alloca {text}")
        return name

    def call(self, result: str, name: str, arguments: Sequence[tuple[str, str]]) -> str:
        types = ", ".join(kind for kind, _ in arguments)
        self.declared[name] = f"declare {result} @{name}({types})"
        text = f"call {result} @{name}({', '.join(f'{kind} {value}' for kind, value in arguments)})"
        if result == "void":
            self.do(text)
            return ""
        return self.value(text)

    def phi(self, kind: str, incoming: Sequence[tuple[str, str]]) -> str:
        """A phi whose later sources are filled in by :meth:`complete`."""
        self.count += 1
        name = f"%v{self.count}"
        pairs = ", ".join(f"[ {value}, %{block} ]" for value, block in incoming)
        self.lines.append(f"  {name} = phi {kind} {pairs}")
        return name

    def open_phi(self, kind: str, value: str, block: str) -> tuple[str, int]:
        name = self.phi(kind, [(value, block)])
        return name, len(self.lines) - 1

    def complete(self, place: int, value: str, block: str) -> None:
        self.lines[place] += f", [ {value}, %{block} ]"

    def loop(
        self,
        count: str,
        body: Callable[[str, list[str]], list[str]],
        kind: str = "",
        initial: Sequence[str] = (),
        step: int = 1,
    ) -> list[str]:
        """``for i in range(0, count, step)``, count > 0, with carried values of one type."""
        before, header, after = self.block, self.new_label("loop"), self.new_label("after")
        self.jump(header)
        self.label(header)
        index, place = self.open_phi("i64", "0", before)
        phis = [self.open_phi(kind, value, before) for value in initial]
        updated = body(index, [name for name, _ in phis])
        following = self.value(f"add nuw nsw i64 {index}, {step}")
        self.complete(place, following, self.block)
        for (_, phi_place), value in zip(phis, updated, strict=True):
            self.complete(phi_place, value, self.block)
        self.branch(self.value(f"icmp slt i64 {following}, {count}"), header, after)
        self.label(after)
        return updated


FAST = "contract nsz arcp reassoc"
"""Freedom of rounding. Never nnan or ninf: a NaN must stay one."""

_BINARY = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}
_EXACT = {"exact_add": "fadd", "exact_sub": "fsub", "exact_mul": "fmul"}
_COMPARE = {"eq": "oeq", "ne": "une", "lt": "olt", "le": "ole", "gt": "ogt", "ge": "oge"}
_INTRINSIC = {
    "sqrt": "sqrt", "abs": "fabs", "copysign": "copysign", "floor": "floor", "ceil": "ceil",
    "trunc": "trunc", "round": "roundeven", "fma": "fma",
}  # fmt: skip


class _Kernel:
    """Writes one kernel."""

    def __init__(self, machine: Machine, target: Target) -> None:
        self.machine, self.target = machine, target
        self.graph: Graph = machine.graph
        bits, lanes = target.bits, target.lanes
        self.real = "float" if bits == 32 else "double"
        self.integer = f"i{bits}"
        self.vector = f"<{lanes} x {self.real}>"
        self.integers = f"<{lanes} x {self.integer}>"
        self.mask = f"<{lanes} x i1>"
        self.bitmask = f"i{lanes}"
        self.suffix = f"v{lanes}f{bits}"
        self.code = _Code()
        self.values: dict[int, str] = {}
        self.emitted_loops: dict[int, dict[int, str]] = {}
        self._needs: dict[int, frozenset[int]] = {}
        loads = machine.loads()
        self.slots = len(machine.fields)
        self.narrow: dict[int, int] = {}
        for node in loads:
            if node.depends == PROBLEM:
                self.narrow[node.serial] = self.slots
                self.slots += 1
        self.loads = loads
        self.field_slots = {f.name: k for k, f in enumerate(machine.fields)}
        self.entry_values: dict[object, str] = {}

    # -- constants and vectors

    def number(self, value: float) -> str:
        """A constant as the assembler wants it: a double in hexadecimal."""
        if self.target.bits == 32:
            try:
                value = struct.unpack("f", struct.pack("f", value))[0]
            except OverflowError:
                value = float("inf") if value > 0 else float("-inf")
        return f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"

    def constant(self, value: float) -> str:
        return f"splat ({self.real} {self.number(value)})"

    def splat(self, scalar: str) -> str:
        code = self.code
        first = code.value(f"insertelement {self.vector} poison, {self.real} {scalar}, i32 0")
        return code.value(
            f"shufflevector {self.vector} {first}, {self.vector} poison, "
            f"<{self.target.lanes} x i32> zeroinitializer"
        )

    def binary(self, op: str, a: str, b: str, flags: str = FAST) -> str:
        return self.code.value(f"{op} {flags} {self.vector} {a}, {b}")

    def intrinsic(self, name: str, *args: str) -> str:
        kinds = [(self.vector, arg) for arg in args]
        return self.code.call(self.vector, f"llvm.{name}.{self.suffix}", kinds)

    def compare(self, predicate: str, a: str, b: str) -> str:
        return self.code.value(f"fcmp {predicate} {self.vector} {a}, {b}")

    def select(self, condition: str, a: str, b: str) -> str:
        vector = self.vector
        return self.code.value(f"select {self.mask} {condition}, {vector} {a}, {vector} {b}")

    def bits_of(self, mask: str) -> str:
        return self.code.value(f"bitcast {self.mask} {mask} to {self.bitmask}")

    def multiply_add(self, a: str, b: str, total: str) -> str:
        return self.intrinsic("fma", a, b, total)

    # -- memory

    def element(self, base: str, index: str, kind: str) -> str:
        return self.code.value(f"getelementptr inbounds {kind}, ptr {base}, i64 {index}")

    def beyond(self, base: str, offset: str) -> str:
        return self.code.value(f"getelementptr i8, ptr {base}, i64 {offset}")

    def load_vector(self, base: str, index: str) -> str:
        place = self.element(base, index, self.vector)
        return self.code.value(f"load {self.vector}, ptr {place}, align {self.target.bytes}")

    def store_vector(self, value: str, base: str, index: str) -> None:
        place = self.element(base, index, self.vector)
        self.code.do(f"store {self.vector} {value}, ptr {place}, align {self.target.bytes}")

    def slot(self, number: int) -> str:
        return self.load_vector("%state", str(number))

    # -- nodes

    def needs(self, node: Node) -> frozenset[int]:
        """The loops whose carried values a node depends on, by identity."""
        known = self._needs
        waiting = [node]
        while waiting:
            node = waiting[-1]
            inner = list(node.args)
            loop: Loop | None = None
            if node.op in ("loop", "loop_condition"):
                loop = node.value[0]  # type: ignore[index]
                assert loop is not None and loop.todo is not None
                inner += [*loop.updated, loop.todo]
            missing = [arg for arg in inner if arg.serial not in known]
            if missing:
                waiting += missing
                continue
            waiting.pop()
            if node.op in ("carry", "carried_condition"):
                known[node.serial] = frozenset({id(node.value[0])})  # type: ignore[index]
            else:
                found = frozenset().union(*(known[arg.serial] for arg in inner))
                known[node.serial] = found - {id(loop)} if loop is not None else found
        return known[node.serial]

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
        for node in everything(roots):
            if node.serial in self.values or (node.depends & SAMPLE and not samples):
                continue
            if self.needs(node) <= within:
                self._emit_node(node, within, samples)

    def number_of(self, node: Node) -> str:
        """A node's value as a vector of numbers."""
        return self.constant(node.value) if node.op == "const" else self.values[node.serial]  # type: ignore[arg-type]

    def condition_of(self, node: Node) -> str:
        """A node's value as a mask."""
        if node.op == "const":
            return f"splat (i1 {'true' if node.value else 'false'})"
        value = self.values[node.serial]
        # a value that a loop carries unchanged may have stayed a number
        return value if node.op in CONDITIONS else self.compare("une", value, self.constant(0.0))

    def typed(self, node: Node, like: Node) -> str:
        """As a mask where ``like`` is a condition, as numbers elsewhere."""
        return self.condition_of(node) if like.op in CONDITIONS else self.number_of(node)

    def _emit_node(self, node: Node, within: frozenset[int], samples: bool) -> None:
        if node.op == "const":
            return
        if node.op in ("loop", "loop_condition"):
            loop: Loop
            position: int
            loop, position = node.value  # type: ignore[misc]
            if id(loop) not in self.emitted_loops:
                self.emitted_loops[id(loop)] = self._emit_loop(loop, within)
            self.values[node.serial] = self.emitted_loops[id(loop)][position]
            return
        value = self._operation(node)
        if value is None:
            expansion = expand(self.graph, node.op, node.args, self.target.bits)
            if expansion is None:
                raise UnsupportedError(f"{node.op!r} has no compiled form")
            self.emit([expansion], within, samples)
            value = self.typed(expansion, node)
        self.values[node.serial] = value

    def _operation(self, node: Node) -> str | None:
        """Code of one operation; None where it has to be expanded."""
        op, args, code = node.op, node.args, self.code
        if op == "state":
            return self.slot(self.field_slots[node.value])
        if op == "state_condition":
            number = self.slot(self.field_slots[node.value])
            return self.compare("une", number, self.constant(0.0))
        if op == "load":
            return self.slot(self.narrow[node.serial])
        if op in _BINARY:
            return self.binary(_BINARY[op], *map(self.number_of, args))
        if op in _EXACT:
            a, b = map(self.number_of, args)
            return self.binary(_EXACT[op], a, b, flags="")
        if op == "neg":
            return code.value(f"fneg {self.vector} {self.number_of(args[0])}")
        if op in _INTRINSIC:
            return self.intrinsic(_INTRINSIC[op], *map(self.number_of, args))
        if op in _COMPARE:
            return self.compare(_COMPARE[op], *map(self.number_of, args))
        if op in ("and", "or"):
            a, b = map(self.condition_of, args)
            return code.value(f"{op} {self.mask} {a}, {b}")
        if op == "not":
            return code.value(f"xor {self.mask} {self.condition_of(args[0])}, splat (i1 true)")
        if op == "where":
            condition = self.condition_of(args[0])
            return self.select(condition, *map(self.number_of, args[1:]))
        if op in ("maximum", "minimum"):
            a, b = map(self.number_of, args)
            return self.select(self.compare("ogt" if op == "maximum" else "olt", a, b), a, b)
        if op == "isnan":
            a = self.number_of(args[0])
            return self.compare("uno", a, a)
        if op == "isfinite":
            size = self.intrinsic("fabs", self.number_of(args[0]))
            return self.compare("olt", size, self.constant(float("inf")))
        special: dict[str, Callable[..., str]] = {
            "exp2": self._exp2,
            "ldexp": self._ldexp,
            "exponent": self._exponent,
            "mantissa": self._mantissa,
        }
        return special[op](*map(self.number_of, args)) if op in special else None

    def _horner(self, x: str, coefficients: Sequence[float]) -> str:
        *rest, last = coefficients
        total = self.constant(last)
        for coefficient in reversed(rest):
            total = self.multiply_add(total, x, self.constant(coefficient))
        return total

    def _scalef(self, x: str, n: str) -> str:
        """x · 2^n, one register at a time."""
        code, bits = self.code, self.target.bits
        width = 512 // bits
        part = f"<{width} x {self.real}>"
        parts = []
        for first in range(0, self.target.lanes, width):
            a, b = (self._lanes_of(value, first, width) for value in (x, n))
            arguments = [(part, a), (part, b), (part, a), (f"i{width}", "-1"), ("i32", "4")]
            name = f"llvm.x86.avx512.mask.scalef.p{'s' if bits == 32 else 'd'}.512"
            parts.append(code.call(part, name, arguments))
        if len(parts) == 1:
            return parts[0]
        return self._shuffled(part, *parts, 0, 2 * width)

    def _lanes_of(self, value: str, first: int, count: int) -> str:
        """Some lanes next to each other."""
        if count == self.target.lanes:
            return value
        return self._shuffled(self.vector, value, "poison", first, count)

    def _shuffled(self, kind: str, a: str, b: str, first: int, count: int) -> str:
        places = ", ".join(f"i32 {first + k}" for k in range(count))
        mask = f"<{count} x i32> <{places}>"
        return self.code.value(f"shufflevector {kind} {a}, {kind} {b}, {mask}")

    @property
    def _mantissa_bits(self) -> int:
        return 23 if self.target.bits == 32 else 52

    def _ints(self, op: str, a: str, b: str) -> str:
        return self.code.value(f"{op} {self.integers} {a}, {b}")

    def _int_constant(self, value: int) -> str:
        return f"splat ({self.integer} {value})"

    def _cast(self, value: str, integers: bool) -> str:
        kinds = (self.vector, self.integers) if integers else (self.integers, self.vector)
        return self.code.value(f"bitcast {kinds[0]} {value} to {kinds[1]}")

    def _exp2(self, t: str) -> str:
        coefficients = EXP2[self.target.bits]
        if self.target.scalef:
            # exact at 0, inf and NaN; only −inf needs the clamp
            lowest = self.constant(-2000.0)
            t = self.select(self.compare("olt", t, lowest), lowest, t)
            n = self.intrinsic("roundeven", t)
            return self._scalef(self._horner(self.binary("fsub", t, n, ""), coefficients), n)
        # round by adding a number so large that only integers are left, which also brings the
        # integer to where it can be shifted into the exponent
        limit = 128.0 if self.target.bits == 32 else 1024.0
        low, high = self.constant(1 - limit), self.constant(limit)
        t = self.select(self.compare("ogt", t, high), high, t)
        t = self.select(self.compare("olt", t, low), low, t)
        magic = self.constant(1.5 * 2.0**self._mantissa_bits)
        shifted = self.binary("fadd", t, magic, "")
        rest = self.binary("fsub", t, self.binary("fsub", shifted, magic, ""), "")
        return self._add_exponent(self._horner(rest, coefficients), shifted)

    def _add_exponent(self, x: str, shifted: str) -> str:
        """X · 2^n for the n in the lowest bits of ``shifted``."""
        bits = self._cast(shifted, True)
        power = self._ints("shl", bits, self._int_constant(self._mantissa_bits))
        return self._cast(self._ints("add", self._cast(x, True), power), False)

    def _ldexp(self, x: str, n: str) -> str:
        if self.target.scalef:
            return self._scalef(x, n)
        magic = self.constant(1.5 * 2.0**self._mantissa_bits)
        moved = self._add_exponent(x, self.binary("fadd", n, magic, ""))
        # below the normal range the exponent would wrap around; zero has no exponent to add to
        least = 126.0 if self.target.bits == 32 else 1022.0
        least_exponent = self.constant(-least)
        total = self.binary("fadd", self._exponent(x), n, "")
        zero = self.intrinsic("copysign", self.constant(0.0), x)
        moved = self.select(self.compare("olt", total, least_exponent), zero, moved)
        infinite = self.intrinsic("copysign", self.constant(float("inf")), x)
        moved = self.select(self.compare("ogt", total, self.constant(least + 1)), infinite, moved)
        size = self.intrinsic("fabs", x)
        ordinary = self.compare("olt", size, self.constant(float("inf")))
        nonzero = self.compare("ogt", size, self.constant(0.0))
        both = self.code.value(f"and {self.mask} {ordinary}, {nonzero}")
        return self.select(both, moved, x)

    def _exponent(self, x: str) -> str:
        bits, exponent_bits = self._mantissa_bits, self.target.bits - 1 - self._mantissa_bits
        bias = 2 ** (exponent_bits - 1) - 1
        field = self._ints("lshr", self._cast(x, True), self._int_constant(bits))
        field = self._ints("and", field, self._int_constant(2**exponent_bits - 1))
        # as the low bits of a number whose last place is 1
        large = 2.0**bits
        pattern = struct.unpack("<q", struct.pack("<d", large))[0]
        if self.target.bits == 32:
            pattern = struct.unpack("<i", struct.pack("<f", large))[0]
        number = self._cast(self._ints("or", field, self._int_constant(pattern)), False)
        return self.binary("fsub", number, self.constant(large + bias), "")

    def _mantissa(self, x: str) -> str:
        bits, exponent_bits = self._mantissa_bits, self.target.bits - 1 - self._mantissa_bits
        keep = ~((2**exponent_bits - 1) << bits)
        one = (2 ** (exponent_bits - 1) - 1) << bits
        part = self._ints("and", self._cast(x, True), self._int_constant(keep))
        return self._cast(self._ints("or", part, self._int_constant(one)), False)

    # -- loops of the graph

    def _emit_loop(self, loop: Loop, within: frozenset[int]) -> dict[int, str]:
        """Code of a loop; the results by position."""
        code = self.code
        inside = within | {id(loop)}
        assert loop.todo is not None
        roots = [*loop.updated, loop.todo]
        # what does not depend on the loop comes before it
        self.emit(roots, within, False)
        moving = [k for k, c in enumerate(loop.carried) if c is not loop.initial[k]]
        carried_nodes = [loop.carried[k] for k in moving]
        kinds = [self.mask if c.op in CONDITIONS else self.vector for c in carried_nodes]
        initial = [self.typed(loop.initial[k], loop.carried[k]) for k in moving]
        active = code.value(f"load {self.bitmask}, ptr %active")
        header, after = code.new_label("round"), code.new_label("done")
        entry = code.block
        skips = loop.first.op != "const"
        if skips:
            some = code.value(
                f"and {self.bitmask} {self.bits_of(self.condition_of(loop.first))}, {active}"
            )
            code.branch(code.value(f"icmp ne {self.bitmask} {some}, 0"), header, after)
        else:
            code.jump(header)
        code.label(header)
        count, count_place = code.open_phi("i32", "0", entry)
        phis = [code.open_phi(k, v, entry) for k, v in zip(kinds, initial, strict=True)]
        for carried, (name, _) in zip(carried_nodes, phis, strict=True):
            self.values[carried.serial] = name
        self.emit(roots, inside, False)
        updated = [self.typed(loop.updated[k], loop.carried[k]) for k in moving]
        following = code.value(f"add i32 {count}, 1")
        left = code.value(
            f"and {self.bitmask} {self.bits_of(self.condition_of(loop.todo))}, {active}"
        )
        some = code.value(f"icmp ne {self.bitmask} {left}, 0")
        early = code.value(f"icmp ult i32 {following}, {loop.times}")
        again = code.value(f"and i1 {some}, {early}")
        code.complete(count_place, following, code.block)
        for (_, place), value in zip(phis, updated, strict=True):
            code.complete(place, value, code.block)
        last = code.block
        code.branch(again, header, after)
        code.label(after)
        if skips:
            updated = [
                code.phi(kind, [(old, entry), (new, last)])
                for kind, old, new in zip(kinds, initial, updated, strict=True)
            ]
        return dict(zip(moving, updated, strict=True))

    # -- sums over the samples

    def _sample_values(self, run: Run, index: str) -> None:
        """Code of what a run's products need of one sample."""
        roots = [node for pair in run.pairs for node in pair]
        for node in everything(roots):
            if node.op == "load" and node.depends & SAMPLE:
                base = self.entry_values["load", node.serial]
                if node.depends == SAMPLE:
                    kind = self._kind(node)
                    scalar = self._read(node, self.element(base, index, kind))
                    self.values[node.serial] = self.splat(scalar)
                else:
                    self.values[node.serial] = self.load_vector(base, index)
        self.emit(roots, frozenset(), True)

    def _sums(self, number: int, run: Run) -> None:
        """Code of a run's loop over its samples."""
        code = self.code
        roots = [node for pair in run.pairs for node in pair]
        self.emit(roots, frozenset(), False)
        kept = dict(self.values)
        length = self.entry_values["length", number]
        zero = self.constant(0.0)
        if len(run.pairs) <= self.target.accumulators:

            def body(index: str, totals: list[str]) -> list[str]:
                self._sample_values(run, index)
                return [
                    self._accumulate(a, b, total)
                    for (a, b), total in zip(run.pairs, totals, strict=True)
                ]

            totals = code.loop(length, body, self.vector, [zero] * len(run.pairs))
            self.values = kept
        else:
            self._buffered_sums(run, length, kept)
            totals = [self.load_vector("%totals", str(k)) for k in range(len(run.pairs))]
        for k, total in enumerate(totals):
            node = self.graph.leaf("sum", (number, k), PROBLEM)
            self.values[node.serial] = total

    def _accumulate(self, a: Node, b: Node, total: str) -> str:
        if a.op == "const" or b.op == "const":
            factor, node = (a, b) if a.op == "const" else (b, a)
            if factor.value == 1.0:
                return self.binary("fadd", total, self.number_of(node))
        return self.multiply_add(self.number_of(a), self.number_of(b), total)

    def _buffered_sums(self, run: Run, length: str, kept: dict[int, str]) -> None:
        code, tile = self.code, self.target.tile
        one = self.graph.const(1.0)
        factors: dict[int, Node] = {}
        for pair in run.pairs:
            for node in pair:
                if node is not one:
                    factors.setdefault(node.serial, node)
        order = list(factors.values())
        place = {serial: k for k, serial in enumerate(factors)}
        width = len(order)
        tiles = _tiles(run, place, one, tile)

        def clear(index: str, _: list[str]) -> list[str]:
            self.store_vector(self.constant(0.0), "%totals", index)
            return []

        code.loop(str(len(run.pairs)), clear)

        def block(start: str, _: list[str]) -> list[str]:
            left = code.value(f"sub i64 {length}, {start}")
            short = code.value(f"icmp slt i64 {left}, {BLOCK}")
            count = code.value(f"select i1 {short}, i64 {left}, i64 {BLOCK}")

            def row(index: str, _: list[str]) -> list[str]:
                sample = code.value(f"add i64 {start}, {index}")
                self._sample_values(run, sample)
                base = code.value(f"mul i64 {index}, {width}")
                for k, node in enumerate(order):
                    where = code.value(f"add i64 {base}, {k}")
                    self.store_vector(self.number_of(node), "%factors", where)
                return []

            code.loop(count, row)
            self.values = dict(kept)
            for pairs in tiles:
                self._tile(run, pairs, place, width, count)
            return []

        code.loop(length, block, step=BLOCK)
        self.values = kept

    def _tile(
        self, run: Run, pairs: list[int], place: dict[int, int], width: int, count: str
    ) -> None:
        """Add a block of samples to some of the sums, in registers."""
        code = self.code

        def body(index: str, totals: list[str]) -> list[str]:
            base = code.value(f"mul i64 {index}, {width}")
            loaded: dict[int, str] = {}
            for k in pairs:
                for node in run.pairs[k]:
                    if node.serial in place and node.serial not in loaded:
                        where = code.value(f"add i64 {base}, {place[node.serial]}")
                        loaded[node.serial] = self.load_vector("%factors", where)
            updated = []
            for k, total in zip(pairs, totals, strict=True):
                a, b = (loaded.get(node.serial) for node in run.pairs[k])
                if a is None or b is None:
                    updated.append(self.binary("fadd", total, a or b or self.constant(1.0)))
                else:
                    updated.append(self.multiply_add(a, b, total))
            return updated

        found = code.loop(count, body, self.vector, [self.constant(0.0)] * len(pairs))
        for k, total in zip(pairs, found, strict=True):
            old = self.load_vector("%totals", str(k))
            self.store_vector(self.binary("fadd", old, total), "%totals", str(k))

    # -- the whole

    def text(self) -> str:
        code = self.code
        self._prologue()
        code.jump("fill")
        self._fill()
        code.label("body")
        passes = code.value("load i64, ptr %passes")
        code.do(f"store i64 {code.value(f'add i64 {passes}, 1')}, ptr %passes")
        for number, run in enumerate(self.machine.runs):
            if run.pairs:
                self._sums(number, run)
        fields = self.machine.fields
        self.emit([f.updated for f in fields] + [self.machine.finished], frozenset(), False)
        for number, f in enumerate(fields):
            node = f.updated
            if node.op in ("state", "state_condition") and node.value == f.name:
                continue
            value = self.values.get(node.serial)
            if node.op in CONDITIONS:
                value = self.select(str(value), self.constant(1.0), self.constant(0.0))
            elif value is None:
                value = self.number_of(node)
            self.store_vector(value, "%state", str(number))
        if self.machine.history is not None:
            self._write_history(self.machine.history)
        active = code.value(f"load {self.bitmask}, ptr %active")
        finished = self.bits_of(self.condition_of(self.machine.finished))
        todo = code.value(f"and {self.bitmask} {finished}, {active}")
        code.do(f"store {self.bitmask} {todo}, ptr %todo")
        code.jump("fill")
        code.label("exit")
        if self.target.x86:
            code.call("void", "llvm.x86.sse.ldmxcsr", [("ptr", "%csr")])
        code.do(f"ret i64 {code.value('load i64, ptr %passes')}")
        lines = [
            *code.declared.values(),
            "",
            "define i64 @run(ptr noalias %table, i64 %begin, i64 %end, ptr noalias %work) {",
            "entry:",
            *code.entry,
            *code.lines,
            "}",
        ]
        return "\n".join(lines) + "\n"

    def _prologue(self) -> None:
        code, target, machine = self.code, self.target, self.machine
        align = target.bytes
        widest = max((len(run.pairs) for run in machine.runs), default=0)
        factors = max((2 * len(run.pairs) for run in machine.runs), default=0)
        if widest > target.accumulators:
            factors = max(
                len({n.serial for pair in run.pairs for n in pair}) for run in machine.runs
            )
        code.entry += [
            f"  %state = alloca {self.vector}, i32 {max(1, self.slots)}, align {align}",
            f"  %who = alloca i64, i32 {target.lanes}, align 64",
            "  %next = alloca i64",
            "  %passes = alloca i64",
            f"  %entries = alloca {self.vector}, align {align}",
            f"  %todo = alloca {self.bitmask}",
            f"  %active = alloca {self.bitmask}",
        ]
        if widest > target.accumulators:
            code.entry += [
                f"  %totals = alloca {self.vector}, i32 {widest}, align {align}",
                f"  %factors = alloca {self.vector}, i32 {BLOCK * factors}, align {align}",
            ]
        if target.x86:
            code.entry += ["  %csr = alloca i32", "  %flushing = alloca i32"]
            code.call("void", "llvm.x86.sse.stmxcsr", [("ptr", "%csr")])
            old = code.value("load i32, ptr %csr")
            # flush results and operands: bits 15 and 6
            code.do(f"store i32 {code.value(f'or i32 {old}, 32832')}, ptr %flushing")
            code.call("void", "llvm.x86.sse.ldmxcsr", [("ptr", "%flushing")])
        for line in (
            "store i64 %begin, ptr %next",
            "store i64 0, ptr %passes",
            f"store {self.bitmask} -1, ptr %todo",
            f"store {self.bitmask} -1, ptr %active",
        ):
            code.do(line)

        def nobody(index: str, _: list[str]) -> list[str]:
            code.do(f"store i64 -1, ptr {self.element('%who', index, 'i64')}")
            return []

        code.loop(str(target.lanes), nobody)

        def clear(index: str, _: list[str]) -> list[str]:
            self.store_vector(self.constant(0.0), "%state", index)
            return []

        code.loop(str(max(1, self.slots)), clear)
        entry = 0

        def following() -> str:
            nonlocal entry
            place = self.element("%table", str(entry), "i64")
            entry += 1
            return code.value(f"load i64, ptr {place}")

        def pointer(address: str) -> str:
            return code.value(f"inttoptr i64 {address} to ptr")

        known = self.entry_values
        for number, _ in enumerate(machine.runs):
            length = following()
            known["length", number] = length
            node = self.graph.leaf("length", number, 0)
            self.values[node.serial] = self.splat(code.value(f"sitofp i64 {length} to {self.real}"))
        for node in self.loads:
            base = pointer(following())
            known["source", node.serial] = base
            known["load", node.serial] = base
            if node.depends == 0:
                self.values[node.serial] = self.splat(self._read(node, base))
            if node.depends & PROBLEM:
                known["problem", node.serial] = following()
            if node.depends == PROBLEM | SAMPLE:
                known["sample", node.serial] = following()
                known["load", node.serial] = self.beyond("%work", following())
        for number, _ in enumerate(machine.outputs):
            known["output", number] = pointer(following())
            known["stride", number] = following()
        if machine.history is not None:
            known["history", "base"] = pointer(following())
            known["history", "problem"] = following()
            known["history", "entry"] = following()

    def _fill(self) -> None:
        """Lanes in ``todo``: write the outputs, load the next problem in place."""
        code, bitmask, known = self.code, self.bitmask, self.entry_values
        code.label("fill")
        bits = code.value(f"load {bitmask}, ptr %todo")
        code.branch(code.value(f"icmp ne {bitmask} {bits}, 0"), "lane", "filled")
        code.label("filled")
        active = code.value(f"load {bitmask}, ptr %active")
        code.branch(code.value(f"icmp ne {bitmask} {active}, 0"), "body", "exit")
        code.label("lane")
        kinds = [(bitmask, bits), ("i1", "true")]
        low = code.call(bitmask, f"llvm.cttz.{bitmask}", kinds)
        lane = low
        if bitmask != "i64":
            lane = code.value(f"zext {bitmask} {low} to i64")
        fewer = code.value(f"sub {bitmask} {bits}, 1")
        code.do(f"store {bitmask} {code.value(f'and {bitmask} {bits}, {fewer}')}, ptr %todo")
        self._lane = lane
        self._own = self.element("%state", lane, self.real)
        who = self.element("%who", lane, "i64")
        current = code.value(f"load i64, ptr {who}")
        write, load, fetch, idle = (code.new_label(k) for k in ("write", "next", "fetch", "idle"))
        code.branch(code.value(f"icmp sge i64 {current}, 0"), write, load)
        code.label(write)
        for number, output in enumerate(self.machine.outputs):
            row = code.value(f"mul i64 {current}, {known['stride', number]}")
            base = self.beyond(known["output", number], row)
            self._write(output.fields, output.dtype, base)
        code.jump(load)
        code.label(load)
        following = code.value("load i64, ptr %next")
        code.branch(code.value(f"icmp slt i64 {following}, %end"), fetch, idle)
        code.label(fetch)
        code.do(f"store i64 {code.value(f'add i64 {following}, 1')}, ptr %next")
        code.do(f"store i64 {following}, ptr {who}")
        for node in self.loads:
            if node.depends == PROBLEM | SAMPLE:
                self._pack(node, following, lane)
        for node in self.loads:
            if node.depends == PROBLEM:
                value = self._scalar(node, following)
                self._set(self.narrow[node.serial], value)
        self._initialise()
        code.jump("fill")
        code.label(idle)
        code.do(f"store i64 -1, ptr {who}")
        mask = code.value(f"xor {bitmask} {code.value(f'shl {bitmask} 1, {low}')}, -1")
        active = code.value(f"load {bitmask}, ptr %active")
        code.do(f"store {bitmask} {code.value(f'and {bitmask} {active}, {mask}')}, ptr %active")
        code.jump("fill")

    def _place(self, slot: int | str) -> str:
        """Address of the present lane's number in a slot."""
        lanes = self.target.lanes
        if isinstance(slot, int):
            return self.element(self._own, str(slot * lanes), self.real)
        return self.element(self._own, self.code.value(f"mul i64 {slot}, {lanes}"), self.real)

    def _set(self, slot: int, value: str) -> None:
        self.code.do(f"store {self.real} {value}, ptr {self._place(slot)}")

    def _scalar(self, node: Node, problem: str) -> str:
        """A load without sample, for one problem."""
        code, known = self.code, self.entry_values
        base = known["source", node.serial]
        if node.depends & PROBLEM:
            row = code.value(f"mul i64 {problem}, {known['problem', node.serial]}")
            base = self.beyond(base, row)
        return self._read(node, base)

    def _read(self, node: Node, place: str) -> str:
        """One number from memory."""
        kind = self._kind(node)
        value = self.code.value(f"load {kind}, ptr {place}")
        if kind == self.real:
            return value
        conversion = "uitofp" if kind == "i8" else "fpext"
        return self.code.value(f"{conversion} {kind} {value} to {self.real}")

    def _kind(self, node: Node) -> str:
        """The type of a load's numbers in memory."""
        if node.value in self.machine.booleans:
            return "i8"
        return "float" if node.value in self.machine.singles else self.real

    def _write(self, names: Sequence[Hashable], dtype: str, base: str) -> None:
        """Numbers of the present lane, side by side."""
        code = self.code
        slots = [self.field_slots[name] for name in names]
        kinds = {
            "real": self.real,
            "float64": "double",
            "float32": "float",
            "int64": "i64",
            "int8": "i8",
        }
        sizes = {"float": 4, "double": 8, "i64": 8, "i8": 1}
        kind = kinds[dtype]
        size = sizes[kind]

        def copy(slot: int | str, place: str) -> None:
            value = code.value(f"load {self.real}, ptr {self._place(slot)}")
            if dtype.startswith("int"):
                value = code.value(f"fptosi {self.real} {value} to {kind}")
            elif kind != self.real:
                conversion = "fpext" if kind == "double" else "fptrunc"
                value = code.value(f"{conversion} {self.real} {value} to {kind}")
            code.do(f"store {kind} {value}, ptr {place}")

        adjacent = slots == list(range(slots[0], slots[0] + len(slots)))
        if len(slots) <= UNROLLED or not adjacent:
            for k, slot in enumerate(slots):
                copy(slot, self.beyond(base, str(k * size)))
            return

        def body(index: str, _: list[str]) -> list[str]:
            slot = code.value(f"add i64 {index}, {slots[0]}")
            copy(slot, self.beyond(base, code.value(f"mul i64 {index}, {size}")))
            return []

        code.loop(str(len(slots)), body)

    def _write_history(self, history: History) -> None:
        """One entry of every lane that has a problem."""
        code, known = self.code, self.entry_values
        size = self.target.bits // 8
        step = self.values[self.graph.leaf("state", history.step, PROBLEM).serial]
        self.store_vector(step, "%entries", "0")
        slots = [self.field_slots[name] for name in history.fields]

        def lane(index: str, _: list[str]) -> list[str]:
            write, after = code.new_label("keep"), code.new_label("kept")
            place = self.element("%who", index, "i64")
            problem = code.value(f"load i64, ptr {place}")
            code.branch(code.value(f"icmp sge i64 {problem}, 0"), write, after)
            code.label(write)
            own = self.element("%entries", index, self.real)
            number = code.value(f"load {self.real}, ptr {own}")
            entry = code.value(f"fptosi {self.real} {number} to i64")
            row = code.value(f"mul i64 {problem}, {known['history', 'problem']}")
            column = code.value(f"mul i64 {entry}, {known['history', 'entry']}")
            base = self.beyond(self.beyond(known["history", "base"], row), column)
            for k, slot in enumerate(slots):
                lanes = self.element("%state", index, self.real)
                source = self.element(lanes, str(slot * self.target.lanes), self.real)
                value = code.value(f"load {self.real}, ptr {source}")
                code.do(f"store {self.real} {value}, ptr {self.beyond(base, str(k * size))}")
            code.jump(after)
            code.label(after)
            return []

        code.loop(str(self.target.lanes), lane)

    def _pack(self, node: Node, problem: str, lane: str) -> None:
        """Copy one problem's samples to the present lane of the work buffer."""
        code, known = self.code, self.entry_values
        row = code.value(f"mul i64 {problem}, {known['problem', node.serial]}")
        base = self.beyond(known["source", node.serial], row)
        stride = known["sample", node.serial]
        length = known["length", self._run_of(node)]
        ahead = code.value(f"mul i64 {known['problem', node.serial]}, {AHEAD}")
        far = self.beyond(base, ahead)
        line = 512 // self.target.bits

        def fetch(index: str, _: list[str]) -> list[str]:
            place = self.beyond(far, code.value(f"mul i64 {index}, {stride}"))
            arguments = [("ptr", place), ("i32", "0"), ("i32", "3"), ("i32", "1")]
            code.call("void", "llvm.prefetch.p0", arguments)
            return []

        code.loop(length, fetch, step=line)
        target = self.element(known["load", node.serial], lane, self.real)
        size = self.target.bytes

        def copies(count: int) -> Callable[[str, list[str]], list[str]]:
            """Move samples one after the other, ``count`` of them a round."""

            def copy(index: str, places: list[str]) -> list[str]:
                source, sink = places
                for k in range(count):
                    value = self._read(node, source)
                    code.do(f"store {self.real} {value}, ptr {self.beyond(sink, str(k * size))}")
                    source = self.beyond(source, stride)
                return [source, self.beyond(sink, str(count * size))]

            return copy

        rounds = code.value(f"lshr i64 {length}, {PACKED.bit_length() - 1}")
        left = code.value(f"and i64 {length}, {PACKED - 1}")
        source, sink = self._if_positive(rounds, copies(PACKED), [base, target])
        self._if_positive(left, copies(1), [source, sink])

    def _if_positive(
        self, count: str, body: Callable[[str, list[str]], list[str]], places: list[str]
    ) -> list[str]:
        """A loop over pointers that may have no round at all; where they end."""
        code = self.code
        before, some, after = code.block, code.new_label("some"), code.new_label("none")
        code.branch(code.value(f"icmp sgt i64 {count}, 0"), some, after)
        code.label(some)
        moved = code.loop(count, body, "ptr", places)
        last = code.block
        code.jump(after)
        code.label(after)
        pairs = zip(places, moved, strict=True)
        return [code.phi("ptr", [(old, before), (new, last)]) for old, new in pairs]

    def _run_of(self, node: Node) -> int:
        runs = self.machine.runs
        return next(k for k, run in enumerate(runs) if node in self.machine.loads_of(run))

    def _initialise(self) -> None:
        """The state's initial values in the present lane."""
        code, fields = self.code, self.machine.fields
        number = 0
        while number < len(fields):
            node = fields[number].initial
            if node.op == "load":
                if node.depends:
                    value = code.value(
                        f"load {self.real}, ptr {self._place(self.narrow[node.serial])}"
                    )
                else:
                    value = self._scalar(node, "0")
                self._set(number, value)
                number += 1
                continue
            end = number
            while end < len(fields) and fields[end].initial is node:
                end += 1
            value = self.number(node.value)  # type: ignore[arg-type]
            if end - number <= UNROLLED:
                for slot in range(number, end):
                    self._set(slot, value)
            else:
                first = number

                def body(
                    index: str, _: list[str], first: int = first, value: str = value
                ) -> list[str]:
                    slot = code.value(f"add i64 {index}, {first}")
                    code.do(f"store {self.real} {value}, ptr {self._place(slot)}")
                    return []

                code.loop(str(end - number), body)
            number = end


def _tiles(run: Run, place: dict[int, int], one: Node, tile: int) -> list[list[int]]:
    """Sums that share factors, grouped so that a tile of them fits the registers."""
    groups: dict[tuple[int, int], list[int]] = {}
    for k, (a, b) in enumerate(run.pairs):
        places = [place[node.serial] for node in (a, b) if node is not one]
        row, column = max(places), min(places)
        groups.setdefault((row // tile, column // tile), []).append(k)
    return list(groups.values())
