"""A machine as LLVM code for a CPU: one problem per vector lane.

Lane w of every vector register belongs to one problem, so no reduction ever crosses lanes. A lane
whose problem is done writes its outputs and loads the next problem in place: no lane waits for the
slowest of a block. Everything is inlined, elementary functions too, since a call would spill all
accumulators. Denormal numbers are flushed to zero inside the kernel.

The code is written as text: building it as Python objects first took longer than compiling it.
"""

from torchimize.kernel.llvm.kernel import ENTRIES, source
from torchimize.kernel.llvm.nodes import UnsupportedError
from torchimize.kernel.llvm.target import Target

__all__ = ["ENTRIES", "Target", "UnsupportedError", "source"]
