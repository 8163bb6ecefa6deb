"""How long tests wait for what always comes: only what hangs takes longer, however slow or busy the machine is."""

from __future__ import annotations

PATIENCE = 1800.0
"""seconds"""
