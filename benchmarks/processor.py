"""How fast this core can possibly be: its clock, and its fused multiply-adds."""

from __future__ import annotations

import ctypes
import time
from typing import Any

import llvmlite.binding as llvm

CHAINS = 16
"""Independent multiply-adds in flight: more than latency times pipes anywhere."""

STEPS = 20_000_000
REPEATS = 5


def clock() -> float:
    """Cycles a nanosecond: the rate of shifts and exclusive ors that wait for each other."""
    # Each of these four takes one cycle on every processor that this runs on.
    body = "\n".join(
        [
            "  %a = lshr i64 %x, 7",
            "  %b = xor i64 %x, %a",
            "  %c = shl i64 %b, 9",
            "  %next = xor i64 %b, %c",
        ]
    )
    source = f"""
define i64 @run(i64 %n) {{
entry:
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %following, %loop ]
  %x = phi i64 [ 88172645463325252, %entry ], [ %next, %loop ]
{body}
  %following = add i64 %i, 1
  %more = icmp slt i64 %following, %n
  br i1 %more, label %loop, label %after
after:
  ret i64 %next
}}
"""
    return 4 * STEPS / fastest(source)


def multiply_adds(vector_bytes: int) -> float:
    """Fused multiply-adds of whole float64 vectors that start in a nanosecond."""
    lanes = vector_bytes // 8
    kind = f"<{lanes} x double>"
    values = ", ".join(["double 0.5"] * lanes)
    phis, steps, sums = [], [], []
    for k in range(CHAINS):
        phis.append(f"  %x{k} = phi {kind} [ <{values}>, %entry ], [ %y{k}, %loop ]")
        arguments = f"{kind} %x{k}, {kind} %c, {kind} %c"
        steps.append(f"  %y{k} = call {kind} @llvm.fma.v{lanes}f64({arguments})")
        total = f"%s{k - 1}" if k else "%c"
        sums.append(f"  %s{k} = fadd {kind} {total}, %y{k}")
    newline = "\n"
    source = f"""
declare {kind} @llvm.fma.v{lanes}f64({kind}, {kind}, {kind})
define i64 @run(i64 %n) {{
entry:
  %one = sitofp i64 %n to double
  %half = fdiv double %one, {2.0 * STEPS:e}
  %single = insertelement {kind} undef, double %half, i32 0
  %c = shufflevector {kind} %single, {kind} undef, <{lanes} x i32> zeroinitializer
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %following, %loop ]
{newline.join(phis)}
{newline.join(steps)}
  %following = add i64 %i, 1
  %more = icmp slt i64 %following, %n
  br i1 %more, label %loop, label %after
after:
{newline.join(sums)}
  %first = extractelement {kind} %s{CHAINS - 1}, i32 0
  %result = fptosi double %first to i64
  ret i64 %result
}}
"""
    return CHAINS * STEPS / fastest(source)


def fastest(source: str) -> float:
    """Nanoseconds of the fastest of some runs."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(source)
    # The vectors are as wide as they are written.
    target: Any = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=2
    )
    engine = llvm.create_mcjit_compiler(module, target)
    engine.finalize_object()
    address = engine.get_function_address("run")
    function = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(address)
    times = []
    for _ in range(REPEATS):
        began = time.process_time_ns()
        function(STEPS)
        times.append(time.process_time_ns() - began)
    return float(min(times))
