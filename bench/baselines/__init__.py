"""Servers to compare with, written the straightforward way."""
