"""The port to stores of events, and its adapters."""
