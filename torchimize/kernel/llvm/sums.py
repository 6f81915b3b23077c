"""Sums of products over the samples, in registers or through a buffer.

Up to :attr:`Target.accumulators` products are summed in registers. With more, the factors of a few
samples at a time go to a buffer in the first-level cache, and the products are summed in register
tiles from there.
"""

from __future__ import annotations

from collections import Counter

from torchimize.kernel.graph import PROBLEM, SAMPLE, Node
from torchimize.kernel.llvm.nodes import Nodes
from torchimize.kernel.machine import Run, everything

BLOCK = 16
"""Samples whose factors are buffered at a time."""


class SampleSums(Nodes):
    """Writes the loops over the samples."""

    def _sample_values(self, run: Run, index: str) -> None:
        """Code of what a run's products need of one sample."""
        roots = [node for pair in run.pairs for node in pair]
        for node in everything(roots):
            if node.op == "load" and node.depends & SAMPLE:
                base = self.entry_values["load", node.serial]
                if node.depends == SAMPLE:
                    kind = self.kind(node)
                    scalar = self.read(node, self.element(base, index, kind))
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
        # those that meet many others side by side, so that tiles are full
        partners = Counter(node.serial for pair in run.pairs for node in pair)
        order = sorted(factors.values(), key=lambda node: -partners[node.serial])
        place = {node.serial: k for k, node in enumerate(order)}
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


def _tiles(run: Run, place: dict[int, int], one: Node, tile: int) -> list[list[int]]:
    """Sums that share factors, grouped so that a tile of them fits the registers."""
    groups: dict[tuple[int, int], list[int]] = {}
    for k, (a, b) in enumerate(run.pairs):
        places = [place[node.serial] for node in (a, b) if node is not one]
        row, column = max(places), min(places)
        groups.setdefault((row // tile, column // tile), []).append(k)
    return list(groups.values())
