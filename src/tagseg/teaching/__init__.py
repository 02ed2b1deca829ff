"""Teach the memory bank: clusters to name, clicks, what to ask next, and all maps again from the cache."""
