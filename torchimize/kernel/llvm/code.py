"""LLVM assembly as lines of text: values, blocks, loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class Code:
    """Lines of assembly with numbered values."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.entry: list[str] = []
        self.declared: dict[str, str] = {}
        self.count = 0
        self.block = "entry"

    def value(self, text: str) -> str:
        """An instruction with a result; its name."""
        self.count += 1
        name = f"%v{self.count}"
        self.lines.append(f"  {name} = {text}")
        return name

    def do(self, text: str) -> None:
        """An instruction without a result."""
        self.lines.append(f"  {text}")

    def new_label(self, hint: str) -> str:
        """A name for a block."""
        self.count += 1
        return f"{hint}{self.count}"

    def label(self, name: str) -> None:
        """Begin a block."""
        self.lines.append(f"{name}:")
        self.block = name

    def jump(self, name: str) -> None:
        """Go to a block."""
        self.do(f"br label %{name}")

    def branch(self, condition: str, yes: str, no: str) -> None:
        """Go to one of two blocks."""
        self.do(f"br i1 {condition}, label %{yes}, label %{no}")

    def call(self, result: str, name: str, arguments: Sequence[tuple[str, str]]) -> str:
        """Call an intrinsic, and declare it; empty where it gives nothing."""
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
        """A phi with one source, and where its others are added."""
        name = self.phi(kind, [(value, block)])
        return name, len(self.lines) - 1

    def complete(self, place: int, value: str, block: str) -> None:
        """Add a source to a phi."""
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
