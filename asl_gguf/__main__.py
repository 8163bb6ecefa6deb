"""`python -m asl_gguf` is `asl-gguf`."""

import sys

from .cli import main

sys.exit(main())
