"""Recorded conversations of an agent, turn by turn: what was in the cache already, and what a turn costs.

    .venv/bin/python bench/server/agents.py --turns 10 --words 350 700

Of each request: tokens of the prompt, tokens in the cache, kept tokens, seconds of work and until the first token.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from asl_gguf.models.named import resolve
from recordings import TITLE, anthropic_requests, openai_requests, turns
from serving import serving

ROOT = Path(__file__).parents[2]
FORMS = {
    "openai": ("/v1/chat/completions", openai_requests),
    "anthropic": ("/v1/messages", anthropic_requests),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default="smollm2-135m-instruct")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--words", type=int, nargs=2, default=(350, 700), help="of a tool's result; 1.3 tokens each")
    parser.add_argument("--budget", default="0.2")
    parser.add_argument("--forms", nargs="+", default=list(FORMS))
    args = parser.parse_args()
    template = "build/py3-none-*/source/*/vendor/llama.cpp/models/templates/Qwen-Qwen2.5-7B-Instruct.jinja"
    options = ["--chat-template-file", str(next(ROOT.glob(template)))]  # with tools, which the model's own leaves out
    options += f"--asl-budget {args.budget} -np 2 -c 16384 -t 1 --asl-room 1024".split()
    print("| form | turn | prompt | in the cache | kept | seconds of work | until the first token |")
    print("|---|---|---|---|---|---|---|")
    for form in args.forms:
        path, make = FORMS[form]
        with serving(resolve(args.model), *options) as server:
            for turn, body in enumerate(make(turns(args.turns, tuple(args.words)))):
                for name, asked in ((str(turn), body), ("a title", TITLE)):
                    if name == "a title" and turn != args.turns // 2:
                        continue
                    to = path if asked is body else "/v1/chat/completions"
                    status, answer = server.post(to, {"max_tokens": 8, "temperature": 0, **asked})
                    assert status == 200, answer
                    report = answer["asl"]
                    cells = [report[key] for key in ("prompt_tokens", "cached_tokens", "kept_tokens")]
                    cells += [f"{report[key]:.2f}" for key in ("seconds", "elapsed_seconds")]
                    print(f"| {form} | {name} | {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
