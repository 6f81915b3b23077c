"""From a function to code: a traced expression graph, its derivatives, and what renders it.

Knows nothing of least squares.
"""
