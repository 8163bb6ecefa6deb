"""What a router (llama-server without a model) starts for each of its models: `asl-gguf serve` in the router's Python.

The router runs its own executable, which is a Python that knows no virtual environment, and one word before the arguments: this file.
"""

import os
import sys

PYTHON = "ASL_GGUF_PYTHON"
"""environment variable: the router's `sys.executable`"""

if __name__ == "__main__":
    python = os.environ[PYTHON]
    os.execv(python, [python, "-m", "asl_gguf", "serve", *sys.argv[1:], "--asl-open", "off"])
