"""What `asl-gguf bench memory` says of a GPU's memory."""

from __future__ import annotations

import time

from asl_gguf.bench.memory import Peak
from asl_gguf.native import devices
from patience import PATIENCE


def test_the_peak_is_over_the_beginning():
    values = iter([100, 130, 90, 170, 120])
    peak = Peak(lambda: next(values))
    for most in (30, 30, 70, 70):
        peak.look()
        assert peak.bytes == most


def test_it_is_watched_while_something_runs():
    used = [100]
    peak = Peak(lambda: used[0])
    with peak.watched(seconds=0.001):
        used[0] = 250
        deadline = time.monotonic() + PATIENCE
        while peak.bytes != 150 and time.monotonic() < deadline:
            time.sleep(0.001)
        used[0] = 110
    assert peak.bytes == 150


def test_the_end_counts_too():
    used = [100]
    peak = Peak(lambda: used[0])
    with peak.watched(seconds=60):
        used[0] = 400
    assert peak.bytes == 300


def test_without_a_gpu_there_is_none():
    peak = Peak(lambda: None)
    with peak.watched():
        pass
    assert peak.bytes is None


def test_devices():
    found = list(devices.names())
    assert len(found) == devices.count() >= 1 and any(name == "CPU" for name, _ in found)
    assert devices.gpu_bytes_used() is None or devices.gpu_bytes_used() > 0
