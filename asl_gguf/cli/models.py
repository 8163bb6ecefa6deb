"""`asl-gguf models`: named models and their files."""

from __future__ import annotations

import argparse
from typing import Any

from ..drop_in.progress import ProgressBar
from ..models import named


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "models", help="list or fetch named models", description="Named models of models/manifest.json."
    )
    actions = parser.add_subparsers(dest="action", required=False)
    parser.set_defaults(run=list_models)
    actions.add_parser("list", help="names, sizes, and which are here").set_defaults(run=list_models)
    pull = actions.add_parser("pull", help="fetch a model into the user's cache directory")
    pull.add_argument("name")
    pull.add_argument("--force", action="store_true", help="fetch it again")
    pull.set_defaults(run=pull_model)
    path = actions.add_parser("path", help="print the file of a pulled model")
    path.add_argument("name")
    path.set_defaults(run=print_path)


def list_models(_args: argparse.Namespace) -> int:
    for model in named.named_models().values():
        state = "here" if named.is_pulled(model) else f"asl-gguf models pull {model.name}"
        print(f"{model.name}  {model.size / 2**20:.0f} MiB  {model.licence}  context {model.n_ctx_train}  [{state}]")
        print(f"    {model.description}")
    return 0


def pull_model(args: argparse.Namespace) -> int:
    bar = ProgressBar(f"pull {args.name}")
    try:
        path = named.pull(args.name, force=args.force, progress=bar)
    finally:
        bar.clear()
    print(path)
    return 0


def print_path(args: argparse.Namespace) -> int:
    print(named.resolve(args.name))
    return 0
