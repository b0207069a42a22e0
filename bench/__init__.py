"""Benchmarks: scripts with a report. See `README.md`; none of them is a test."""
