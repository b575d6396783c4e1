"""Profiling: rows of a table, whole networks and their errors, measured on this machine through a runtime's backend."""
