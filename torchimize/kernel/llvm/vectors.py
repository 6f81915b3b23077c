"""Vectors of one number per problem: constants, arithmetic, memory, powers of two."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from torchimize.kernel.coefficients import EXP2
from torchimize.kernel.llvm.code import Code
from torchimize.kernel.llvm.target import Target

FAST = "contract nsz arcp"
"""Freedom of rounding: products may be fused into sums, quotients become products. Never nnan or
ninf, a NaN must stay one, and never reassoc, which costs the elementary functions digits."""


class Vectors:
    """Writes operations on vectors.

    Parameters
    ----------
    target : Target
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        bits, lanes = target.bits, target.lanes
        self.real = "float" if bits == 32 else "double"
        self.integer = f"i{bits}"
        self.vector = f"<{lanes} x {self.real}>"
        self.integers = f"<{lanes} x {self.integer}>"
        self.mask = f"<{lanes} x i1>"
        self.bitmask = f"i{lanes}"
        self.suffix = f"v{lanes}f{bits}"
        self.code = Code()

    def number(self, value: float) -> str:
        """A constant as the assembler wants it: a double in hexadecimal."""
        if self.target.bits == 32:
            try:
                value = struct.unpack("f", struct.pack("f", value))[0]
            except OverflowError:
                value = float("inf") if value > 0 else float("-inf")
        return f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"

    def constant(self, value: float) -> str:
        """The same number in every lane."""
        return f"splat ({self.real} {self.number(value)})"

    def splat(self, scalar: str) -> str:
        """A scalar in every lane."""
        code = self.code
        first = code.value(f"insertelement {self.vector} poison, {self.real} {scalar}, i32 0")
        return code.value(
            f"shufflevector {self.vector} {first}, {self.vector} poison, "
            f"<{self.target.lanes} x i32> zeroinitializer"
        )

    def binary(self, op: str, a: str, b: str, flags: str = FAST) -> str:
        """Arithmetic on two vectors."""
        return self.code.value(f"{op} {flags} {self.vector} {a}, {b}")

    def intrinsic(self, name: str, *args: str) -> str:
        """One of LLVM's functions on vectors."""
        kinds = [(self.vector, arg) for arg in args]
        return self.code.call(self.vector, f"llvm.{name}.{self.suffix}", kinds)

    def compare(self, predicate: str, a: str, b: str) -> str:
        """A mask."""
        return self.code.value(f"fcmp {predicate} {self.vector} {a}, {b}")

    def select(self, condition: str, a: str, b: str) -> str:
        """Lanes of a where the mask holds, of b elsewhere."""
        vector = self.vector
        return self.code.value(f"select {self.mask} {condition}, {vector} {a}, {vector} {b}")

    def bits_of(self, mask: str) -> str:
        """A mask as an integer, one bit a lane."""
        return self.code.value(f"bitcast {self.mask} {mask} to {self.bitmask}")

    def multiply_add(self, a: str, b: str, total: str) -> str:
        """The sum a·b + total, rounded once."""
        return self.intrinsic("fma", a, b, total)

    # -- memory

    def element(self, base: str, index: str, kind: str) -> str:
        """Address of an element of an array."""
        return self.code.value(f"getelementptr inbounds {kind}, ptr {base}, i64 {index}")

    def beyond(self, base: str, offset: str) -> str:
        """Address some bytes on."""
        return self.code.value(f"getelementptr i8, ptr {base}, i64 {offset}")

    def load_vector(self, base: str, index: str) -> str:
        """Element of an array of vectors."""
        place = self.element(base, index, self.vector)
        return self.code.value(f"load {self.vector}, ptr {place}, align {self.target.bytes}")

    def store_vector(self, value: str, base: str, index: str) -> None:
        """Write an element of an array of vectors."""
        place = self.element(base, index, self.vector)
        self.code.do(f"store {self.vector} {value}, ptr {place}, align {self.target.bytes}")

    def slot(self, number: int) -> str:
        """A number of the state."""
        return self.load_vector("%state", str(number))

    def _horner(self, x: str, coefficients: Sequence[float]) -> str:
        *rest, last = coefficients
        total = self.constant(last)
        for coefficient in reversed(rest):
            total = self.multiply_add(total, x, self.constant(coefficient))
        return total

    def _scalef(self, x: str, n: str) -> str:
        """The product x · 2^n, one register at a time."""
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
        low, high = parts
        return self._shuffled(part, low, high, 0, 2 * width)

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
        given = t
        limit = 128.0 if self.target.bits == 32 else 1024.0
        low, high = self.constant(1 - limit), self.constant(limit)
        t = self.select(self.compare("ogt", t, high), high, t)
        t = self.select(self.compare("olt", t, low), low, t)
        magic = self.constant(1.5 * 2.0**self._mantissa_bits)
        shifted = self.binary("fadd", t, magic, "")
        rest = self.binary("fsub", t, self.binary("fsub", shifted, magic, ""), "")
        value = self._add_exponent(self._horner(rest, coefficients), shifted)
        return self.select(self.compare("uno", given, given), given, value)

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
        return self.select(self.compare("uno", x, x), x, moved)

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
