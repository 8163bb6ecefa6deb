"""Benchmarks: ours against the same library used the stock way, side by side in one process."""
