"""The port to agents, and its adapters."""
