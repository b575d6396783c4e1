"""Latency tables: their files, calibration, cards and prices; tables of others."""
