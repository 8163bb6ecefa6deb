"""Where there is no GPU, a device is reached over RPC."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from device import add_server, has_gpu, has_rpc, start_server


@pytest.fixture(scope="session", autouse=True)
def is_exact() -> Iterator[bool]:
    """Whether the device's kernels are the CPU's, so that nothing differs by a bit."""
    if has_gpu():
        yield False
        return
    if not has_rpc():
        pytest.skip("the library has neither a GPU nor the RPC backend")
    process, address = start_server()
    add_server(address)
    yield True
    process.kill()
    process.wait()
