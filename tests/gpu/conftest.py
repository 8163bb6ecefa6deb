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
        pytest.exit(
            "expected a GPU or the RPC backend in the library, found neither: build with -DGGML_RPC=on (a build folder from "
            "before it was the default keeps the old value; `rm -r build` forgets it)",
            returncode=1,
        )
    process, address = start_server()
    add_server(address)
    yield True
    process.kill()
    process.wait()
