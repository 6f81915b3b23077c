"""From a torch function to a graph: run it once and watch every operation.

Each tensor of the run is known by a *loader*, a function from an index to a scalar expression; what
operations do to loaders is in :mod:`torchimize.kernel.lowerings`. Nothing is ever stored.

The index of the problems is symbolic (``b``), as is that of the longest dimension of the output
(``n``); all other dimensions are short and unrolled. What cannot be written so (a reduction over
the samples, a gather by a computed index) makes the function untraceable, and says which operation
stood in the way.
"""

from torchimize.kernel.lowerings.context import UntraceableError
from torchimize.kernel.trace.pieces import Piece, Trace
from torchimize.kernel.trace.run import trace

__all__ = ["Piece", "Trace", "UntraceableError", "trace"]
