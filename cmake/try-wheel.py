"""try-wheel.py FOLDER: installs the folder's wheels where there is no compiler, and prunes a prompt.

    python cmake/try-wheel.py dist
    python cmake/try-wheel.py dist --under qemu-x86_64 -cpu Nehalem

`--under` starts Python under another program, such as an emulator of an older processor.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

_PRUNE = """
import asl_gguf, sys
llm = asl_gguf.Llama(sys.argv[1], n_ctx=512, asl_budget=0.5, asl_min_prompt=64, verbose=False, n_threads=1)
llm.prefill(list(range(1, 129)))
report = llm.last_prefill
print(report)
assert report.kept_tokens < report.prompt_tokens == 128, report
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--under", nargs=argparse.REMAINDER, default=[])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        venv.create(home / "venv", with_pip=True)
        python = home / "venv" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
        # nothing to compile with: a source distribution would fail here
        environment = os.environ | {"CC": "/nonexistent", "CXX": "/nonexistent"}
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        wheels = [str(path) for path in args.folder.glob("*.whl")]
        subprocess.run(
            [*pip, "--only-binary", ":all:", "--find-links", str(args.folder), *wheels], check=True, env=environment
        )
        model = home / "tiny.gguf"
        script = Path(__file__).resolve().parents[1] / "bench" / "gpu" / "write_model.py"
        subprocess.run([str(python), str(script), "tiny", str(model), "--mix", "q4_k_m"], check=True, cwd=home)
        run = [*args.under, str(python)]
        subprocess.run([*run, "-m", "asl_gguf", "doctor"], check=True, cwd=home)
        subprocess.run([*run, "-c", _PRUNE, str(model)], check=True, cwd=home)
    return 0


if __name__ == "__main__":
    sys.exit(main())
