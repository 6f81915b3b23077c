"""Published least-squares problems, shared by tests, examples and benchmarks.

`problems.nist` holds the NIST StRD data sets with certified answers, `problems.mgh` the test
problems of Moré, Garbow and Hillstrom with known minima.
"""
