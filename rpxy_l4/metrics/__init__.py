"""Counters in memory shared by fork: their layout, the memory itself, and their exposition to Prometheus."""
