"""The whole kernel: problems into lanes, passes over the samples, a step, results out of lanes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from torchimize.kernel.graph import CONDITIONS, PROBLEM, SAMPLE, Node
from torchimize.kernel.llvm.sums import BLOCK, SampleSums
from torchimize.kernel.llvm.target import Target
from torchimize.kernel.machine import History, Machine

AHEAD = 8
"""A row of samples is fetched into the cache that many refills before it is needed."""

PACKED = 8
"""Samples that are copied into the work buffer in one round of a loop; a power of two."""

UNROLLED = 4
"""Longest run of scalars that is copied without a loop."""


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
    return Kernel(machine, target).text()


ENTRIES = {0: 1, SAMPLE: 1, PROBLEM: 2, PROBLEM | SAMPLE: 4}
"""Entries of a load in the table, by what it depends on: its address; the bytes from one problem to
the next; those from one sample to the next; its place in ``work``, in bytes. Samples shared by all
problems lie side by side."""


class Kernel(SampleSums):
    """Writes one kernel."""

    def text(self) -> str:
        """The assembly."""
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
                self.values[node.serial] = self.splat(self.read(node, base))
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
        return self.read(node, base)

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
                    value = self.read(node, source)
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
