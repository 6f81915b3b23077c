"""Nodes of a graph as operations on vectors, loops included."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torchimize.kernel.elementary import expand
from torchimize.kernel.graph import CONDITIONS, PROBLEM, SAMPLE, Graph, Loop, Node
from torchimize.kernel.llvm.target import Target
from torchimize.kernel.llvm.vectors import Vectors
from torchimize.kernel.machine import Machine, everything


class UnsupportedError(Exception):
    """An operation has no code; the message names it."""


BINARY = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}
EXACT = {"exact_add": "fadd", "exact_sub": "fsub", "exact_mul": "fmul"}
COMPARE = {"eq": "oeq", "ne": "une", "lt": "olt", "le": "ole", "gt": "ogt", "ge": "oge"}
EXTREMES = {"maximum": "ogt", "minimum": "olt"}
INTRINSIC = {
    "sqrt": "sqrt", "abs": "fabs", "copysign": "copysign", "floor": "floor", "ceil": "ceil",
    "trunc": "trunc", "round": "roundeven", "fma": "fma",
}  # fmt: skip


class Nodes(Vectors):
    """Writes the values of nodes, each once where it is visible.

    Parameters
    ----------
    machine : Machine
    target : Target

    Attributes
    ----------
    values : dict of int to str
        What has been written, by the node's serial.
    """

    def __init__(self, machine: Machine, target: Target) -> None:
        super().__init__(target)
        self.machine = machine
        self.graph: Graph = machine.graph
        self.values: dict[int, str] = {}
        self.emitted_loops: dict[int, dict[int, str]] = {}
        self._needs: dict[int, frozenset[int]] = {}
        self.loads = machine.loads()
        self.field_slots = {f.name: k for k, f in enumerate(machine.fields)}
        self.slots = len(machine.fields)
        self.narrow: dict[int, int] = {}
        for node in self.loads:
            if node.depends == PROBLEM:
                self.narrow[node.serial] = self.slots
                self.slots += 1
        self.entry_values: dict[object, str] = {}

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
        if op in BINARY:
            return self.binary(BINARY[op], *map(self.number_of, args))
        if op in EXACT:
            a, b = map(self.number_of, args)
            return self.binary(EXACT[op], a, b, flags="")
        if op == "neg":
            return code.value(f"fneg {self.vector} {self.number_of(args[0])}")
        if op in INTRINSIC:
            return self.intrinsic(INTRINSIC[op], *map(self.number_of, args))
        if op in COMPARE:
            return self.compare(COMPARE[op], *map(self.number_of, args))
        if op in ("and", "or"):
            a, b = map(self.condition_of, args)
            return code.value(f"{op} {self.mask} {a}, {b}")
        if op == "not":
            return code.value(f"xor {self.mask} {self.condition_of(args[0])}, splat (i1 true)")
        if op == "where":
            condition = self.condition_of(args[0])
            return self.select(condition, *map(self.number_of, args[1:]))
        if op in EXTREMES:
            a, b = map(self.number_of, args)
            # one instruction, in which a NaN in b passes but not one in a
            value = self.select(self.compare(EXTREMES[op], a, b), a, b)
            return self.select(self.compare("uno", a, a), a, value)
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
        outside = dict(self.values)
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
        # a round may not happen: nothing from inside is there for others
        self.values = outside
        code.branch(again, header, after)
        code.label(after)
        if skips:
            updated = [
                code.phi(kind, [(old, entry), (new, last)])
                for kind, old, new in zip(kinds, initial, updated, strict=True)
            ]
        return dict(zip(moving, updated, strict=True))

    def read(self, node: Node, place: str) -> str:
        """One number from memory."""
        kind = self.kind(node)
        value = self.code.value(f"load {kind}, ptr {place}")
        if kind == self.real:
            return value
        conversion = "uitofp" if kind == "i8" else "fpext"
        return self.code.value(f"{conversion} {kind} {value} to {self.real}")

    def kind(self, node: Node) -> str:
        """The type of a load's numbers in memory."""
        if node.value in self.machine.booleans:
            return "i8"
        return "float" if node.value in self.machine.singles else self.real
