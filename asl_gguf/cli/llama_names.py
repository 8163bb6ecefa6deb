"""Options of llama.cpp's programs that are none here, and what there is in their place."""

from __future__ import annotations

_TALK = "asl-gguf chat talks with a model"
_SERVE = "asl-gguf serve is llama.cpp's server"
_KEPT = "save_prompt of Python's Llama keeps a prompt in a file"
_DRAFT = "drafted answers come from the full cache, with draft_model of Python's Llama"
_PICTURES = "prompts are text here"
_HUB = "download the file and name it with -m, or take -hf USER/REPO"
_RUN = "asl-gguf run answers once"
_LOG = "--report says more about what was kept, and errors are one line"
_OFFLOAD = "-ngl N puts layers on the GPU, -ts and -mg choose among several"
_FIT = "--budget fit:2GiB fits the K/V into memory, -ngl N the layers"
_ORDER = "samplers stand in llama.cpp's usual order: penalties, DRY, --top-nsigma, --top-k, --typical, --top-p, --min-p, XTC, --temp"
_TURNS = "-sys and the chat template stand round a text, --raw completes it as it is"
_THINKING = "--chat-template-kwargs '{\"enable_thinking\": false}' is what templates read"
_PRESET = "name a model with -hf USER/REPO:QUANT"

INSTEAD = {
    **dict.fromkeys(("-cnv", "--conversation", "-i", "--interactive", "-if", "--interactive-first"), _TALK),
    **dict.fromkeys(("-mli", "--multiline-input"), 'in asl-gguf chat, lines between two lines of """ are one question'),
    **dict.fromkeys(("-a", "--alias", "-cb", "--cont-batching", "--host", "--port", "--api-key"), _SERVE),
    **dict.fromkeys(("-ctxcp", "-cram", "--server-base", "--slots", "--metrics", "--slot-save-path"), _SERVE),
    **dict.fromkeys(("--prompt-cache", "--prompt-cache-all", "--prompt-cache-ro"), _KEPT),
    **dict.fromkeys(("-mu", "--model-url", "-dr", "--docker-repo"), _HUB),
    **dict.fromkeys(("-hff", "--hf-file"), "-hf USER/REPO:QUANT names a file by its quantisation"),
    **dict.fromkeys(("-hft", "--hf-token"), "HF_TOKEN in the environment is read"),
    "--offline": "HF_HUB_OFFLINE=1 in the environment does the same",
    **dict.fromkeys(("-bf", "--binary-file"), "-f reads documents"),
    **dict.fromkeys(("-st", "--single-turn"), _RUN),
    **dict.fromkeys(("-no-cnv", "--no-conversation"), "asl-gguf run --raw completes a text as it is"),
    **dict.fromkeys(("-p", "--prompt"), "asl-gguf run -p answers a prompt, asl-gguf chat the lines that it reads"),
    **dict.fromkeys(("--in-prefix", "--in-prefix-bos", "--in-suffix", "--no-jinja"), _TURNS),
    **dict.fromkeys(("-sp", "--special"), "special tokens are not part of an answer's text"),
    **dict.fromkeys(("-ptc", "--print-token-count"), "--json has the numbers of tokens"),
    **dict.fromkeys(("-o", "--output", "--output-file"), "> FILE writes the answer to a file"),
    **dict.fromkeys(("-v", "--verbose", "-lv", "--verbosity"), _LOG),
    **dict.fromkeys(("-cl", "--cache-list"), "asl-gguf models lists those that are here"),
    "--list-devices": "asl-gguf doctor names the devices",
    "--version": "asl-gguf --version prints it",
    "--usage": "--help has all options",
    "--completion-bash": "asl-gguf --help lists the commands",
    "--keep": "--protect BEGIN:END keeps tokens whatever their scores",
    "--context-shift": "an answer ends where the context does; -c N makes it longer",
    **dict.fromkeys(("-gan", "--grp-attn-n", "-gaw", "--grp-attn-w"), "--rope-scaling stretches a model's positions"),
    **dict.fromkeys(("--samplers", "--sampler-seq", "--sampling-seq"), _ORDER),
    **dict.fromkeys(("--adaptive-target", "--adaptive-decay"), "--mirostat 2 steers an answer's surprise"),
    **dict.fromkeys(("-bs", "--backend-sampling"), "tokens are sampled on the CPU"),
    **dict.fromkeys(
        ("-dev", "--device", "-ot", "--override-tensor", "-cmoe", "-ncmoe", "-ncffn", "--n-cpu-ffn"), _OFFLOAD
    ),
    **dict.fromkeys(("--cpu-moe", "--n-cpu-moe", "--no-host", "--rpc"), _OFFLOAD),
    **dict.fromkeys(("-lzm", "--lazy-mode"), "--load-mode mmap reads tensors when they are needed"),
    "--no-repack": "--dequant off computes with llama.cpp's own products",
    "-nr": "--dequant off computes with llama.cpp's own products",
    **dict.fromkeys(("-fit", "-fitt", "-fitc"), _FIT),
    **dict.fromkeys(("-rea", "--skip-chat-parsing", "--no-skip-chat-parsing"), _THINKING),
    "--no-reasoning-preserve": _THINKING,
    **dict.fromkeys(("-mm", "-mmu", "-mmdev", "--image", "--audio", "--video", "--no-mmproj-offload"), _PICTURES),
    **dict.fromkeys(("-md", "-td", "-tbd", "-hfd", "-hfrd", "-ctkd", "-ctvd", "-otd", "-devd", "-ngld"), _DRAFT),
    **dict.fromkeys(("-Cd", "-Crd", "-Cbd", "-Crbd", "-cmoed", "-ncmoed"), _DRAFT),
}
"""options of llama.cpp's programs -> what there is in their place"""
_BEGINNINGS = {
    "--draft": _DRAFT, "--spec-": _DRAFT, "--no-spec-": _DRAFT, "--mmproj": _PICTURES, "--image-": _PICTURES,
    "--video-": _PICTURES, "--log-": _LOG, "--reasoning": _THINKING, "--fit": _FIT, "--control-vector": "control vectors "
    "are set with llama_cpp's functions, in Python", "--gpt-oss-": _PRESET, "--vision-": _PRESET, "--ctx-checkpoints": _SERVE,
    "--swa-checkpoints": _SERVE, "--cache-ram": _SERVE,
}  # fmt: skip
"""the same for all that begin so"""


def instead(option: str) -> str | None:
    """What there is in place of an option of llama.cpp's programs; None: it is none of theirs, or has another name here."""
    if option in INSTEAD:
        return INSTEAD[option]
    if option.endswith("-draft"):
        return _DRAFT
    return next((text for start, text in _BEGINNINGS.items() if option.startswith(start)), None)
