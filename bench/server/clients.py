"""Programs of others against the endpoint: two turns of each, what they asked, and what the slots kept.

    .venv/bin/python bench/server/clients.py --folder build/clients --only llm aider

Installs each of them into a folder of its own (npm, or pip in an environment), starts `asl-gguf serve` with the first
layers of a small model for each budget, and prints a line for each request. The answers are nonsense: what counts is
whether sessions go on, what was reused, and whether anything fails that does not with `--budgets none`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from recorder import recording

from asl_gguf.models.named import resolve
from cut_gguf import cut
from serving import serving

ROOT = Path(__file__).parents[2]
WORDS = "the sky was clear and a ship left port with wine salt iron wool for towns along the coast until the storm came"
FIRST, SECOND = "What is wrong in a.py?", "And is it tested?"

LLAMA_INDEX = '''
import sys
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

def weather(place: str) -> str:
    """The weather of a place."""
    return "sun"

text = open("notes.txt").read()
llm = OpenAILike(model="any", api_base=sys.argv[1], api_key="none", is_chat_model=True, is_function_calling_model=True,
                 max_tokens=32, additional_kwargs={"extra_body": {"asl": {"budget": 0.1}}})
messages = [ChatMessage(role="user", content=text + " What did the ship carry?")]
first = llm.chat(messages)
messages += [first.message, ChatMessage(role="user", content="And when?")]
list(llm.stream_chat(messages))
llm.chat_with_tools([FunctionTool.from_defaults(weather)], user_msg=text + " The weather in Rome?")
'''

CONTINUE = """
name: asl
version: 1.0.0
schema: v1
models:
  - name: any
    provider: openai
    model: any
    apiBase: {base}
    apiKey: none
    roles: [chat]
    requestOptions:
      extraBodyProperties: {{asl: {{protect: [system, question]}}}}
"""

CODEX = """
model = "any"
model_provider = "asl"
[model_providers.asl]
name = "asl"
base_url = "{base}"
wire_api = "responses"
stream_idle_timeout_ms = 1800000
"""

OPENCODE = """
{{"$schema": "https://opencode.ai/config.json", "model": "asl/any", "small_model": "asl/any",
 "provider": {{"asl": {{"npm": "@ai-sdk/openai-compatible", "name": "asl",
   "options": {{"baseURL": "{base}", "apiKey": "none", "timeout": false}},
   "models": {{"any": {{"name": "any", "limit": {{"context": 32768, "output": 256}}}}}}}}}}}}
"""

LLM = """
- model_id: asl
  model_name: any
  api_base: {base}
  api_key_name: asl
"""


@dataclass(frozen=True)
class Program:
    """How a program is installed, set up and asked. `{bin}`, `{base}`, `{root}`, `{home}` are filled in."""

    package: str
    turns: list[str]
    files: dict[str, str] = field(default_factory=dict)
    """under its home"""
    env: dict[str, str] = field(default_factory=dict)

    @property
    def is_npm(self) -> bool:
        return self.package.startswith("@") or self.package == "opencode-ai"


AIDER = (
    "{bin}/aider --model openai/any --weak-model openai/any --yes-always --no-git --no-check-update --no-pretty "
    "--analytics-disable --no-show-model-warnings --no-detect-urls a.py --read notes.txt --message"
)
PROGRAMS = {
    "claude": Program(
        "@anthropic-ai/claude-code",
        [f"{{bin}}/claude -p '{FIRST}'", f"{{bin}}/claude -p -c '{SECOND}'"],
        env={
            "ANTHROPIC_BASE_URL": "{root}",
            "ANTHROPIC_AUTH_TOKEN": "none",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "CLAUDE_STREAM_IDLE_TIMEOUT_MS": "1800000",
            "CLAUDE_CODE_MAX_OUTPUT_TOKENS": "64",
        },
    ),
    "codex": Program(
        "@openai/codex",
        [
            f"{{bin}}/codex exec --skip-git-repo-check '{FIRST}'",
            f"{{bin}}/codex exec --skip-git-repo-check resume --last '{SECOND}'",
        ],
        {"config.toml": CODEX},
        {"CODEX_HOME": "{home}"},
    ),
    "opencode": Program(
        "opencode-ai",
        [f"{{bin}}/opencode run '{FIRST}'", f"{{bin}}/opencode run --continue '{SECOND}'"],
        {"work/opencode.json": OPENCODE},
    ),
    "continue": Program(
        "@continuedev/cli",
        [f"{{bin}}/cn -p --config {{home}}/config.yaml {more}'{text}'" for more, text in (("", FIRST), ("--resume ", SECOND))],
        {"config.yaml": CONTINUE},
    ),
    "aider": Program(
        "aider-chat",
        [f"{AIDER} 'Fix add.'", f"{AIDER} 'And a test.' --restore-chat-history"],
        env={"OPENAI_API_BASE": "{base}", "OPENAI_API_KEY": "none"},
    ),
    "llm": Program(
        "llm",
        [
            "{bin}/llm keys set asl --value none",
            "{bin}/llm -m asl -f notes.txt 'What did the ship carry?'",
            "{bin}/llm -c 'And when?'",
            "{bin}/llm -m asl --no-stream Hi",
        ],
        {"extra-openai-models.yaml": LLM},
        {"LLM_USER_PATH": "{home}"},
    ),
    "llama-index": Program(
        "llama-index-llms-openai-like", ["{bin}/python {home}/ask.py {base}"], {"ask.py": LLAMA_INDEX}
    ),
}  # fmt: skip


def install(program: Program, folder: Path) -> Path:
    """The folder with what it runs."""
    if program.is_npm:
        if not (folder / "node_modules").exists():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "package.json").write_text("{}")
            subprocess.run(["npm", "install", "--no-audit", "--no-fund", program.package], cwd=folder, check=True)
        return folder / "node_modules" / ".bin"
    if not (folder / "bin").exists():
        venv.create(folder, with_pip=True)
        subprocess.run([folder / "bin/python", "-m", "pip", "install", "--quiet", program.package], check=True)
    return folder / "bin"


def version(program: Program, folder: Path) -> str:
    if program.is_npm:
        return str(json.loads((folder / f"node_modules/{program.package}/package.json").read_text())["version"])
    name = program.package.replace("-", "_")
    return next(folder.glob(f"lib/*/site-packages/{name}-*.dist-info")).name.removesuffix(".dist-info").split("-")[-1]


def ask(program: Program, folder: Path, port: int, seconds: float) -> list[str]:
    """What went wrong in its turns."""
    home = folder / "home"
    shutil.rmtree(home, ignore_errors=True)
    root = f"http://127.0.0.1:{port}"
    names = {"bin": str(install(program, folder)), "base": f"{root}/v1", "root": root, "home": str(home)}
    work = home / "work"
    work.mkdir(parents=True)
    (work / "a.py").write_text("def add(a, b):\n    return a - b\n")
    (work / "notes.txt").write_text(" ".join(random.Random(1).choices(WORDS.split(), k=1500)) + "\n")
    for name, text in program.files.items():
        (home / name).write_text(text if name.endswith(".py") else text.format(**names))
    env = os.environ | {"HOME": str(home)} | {key: value.format(**names) for key, value in program.env.items()}
    wrong = []
    for turn in program.turns:
        process = subprocess.Popen(
            turn.format(**names), shell=True, cwd=work, env=env, text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=seconds)
            if process.returncode:
                wrong.append(f"exit code {process.returncode}: {output[-300:]!r}")
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            wrong.append(f"no end after {seconds:.0f} s")
    return wrong


def row(name: str, budget: str, seen: dict[str, Any]) -> str:
    report = seen["asl"] or {}
    numbers = [str(report.get(key, "")) for key in ("prompt_tokens", "cached_tokens", "kept_tokens")]
    work = f"{report['seconds']:.1f}" if "seconds" in report else ""
    asked = f"{'stream' if seen['stream'] else ''} {seen['tools'] or ''}".strip()
    status = f"{seen['status']}{', left' if seen['left'] else ''}"
    return (
        f"| {' | '.join([name, budget, seen['path'], asked, status, *numbers, work, format(seen['seconds'], '.1f')])} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default="smollm2-135m-instruct")
    parser.add_argument("--layers", type=int, default=2, help="the model's first ones")
    parser.add_argument("--budgets", nargs="+", default=["0.2", "none"])
    parser.add_argument("--only", nargs="+", default=list(PROGRAMS), choices=list(PROGRAMS))
    parser.add_argument("--folder", type=Path, default=ROOT / "build/clients", help="where they are installed")
    parser.add_argument("--seconds", type=float, default=600, help="that a turn may take")
    args = parser.parse_args()
    template = "build/py3-none-*/source/*/vendor/llama.cpp/models/templates/Qwen-Qwen2.5-7B-Instruct.jinja"
    options = ["--chat-template-file", str(next(ROOT.glob(template)))]  # with tools, which the model's own leaves out
    # the small model was trained for 8,192 tokens; what agents send at first is longer
    options += "-np 2 -c 65536 -t 1 -n 64 --asl-room 1024 --override-kv llama.context_length=int:65536".split()
    print("| program | budget | request | stream, tools | status | prompt | cached | kept | seconds of work | in all |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        model = Path(temporary) / "cut.gguf"
        cut(resolve(args.model), model, args.layers)
        for name in args.only:
            folder = args.folder.resolve() / name
            install(PROGRAMS[name], folder)
            for budget in args.budgets:
                with serving(model, *options, "--asl-budget", budget) as server, recording(server.port) as (port, seen):
                    wrong = ask(PROGRAMS[name], folder, port, args.seconds)
                named = f"{name} {version(PROGRAMS[name], folder)}"
                for one in seen:
                    print(row(named, budget, one), flush=True)
                for text in wrong:
                    print(f"| {named} | {budget} | {text} |", flush=True)


if __name__ == "__main__":
    main()
