"""What times graphs, here and on a board: standard library, NumPy and a runtime, in Python 3.8.

The profiler uses it, and every bundle carries it whole; so nothing here imports more of `nas` than errors and files.
"""
