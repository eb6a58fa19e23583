"""Durable runs: agents that survive whatever dies under them."""
