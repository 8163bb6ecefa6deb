#!/bin/sh
# Speed and memory on a GPU, beside stock llama.cpp with all layers there too. One JSON object a line.
#   bench/gpu/run.sh MODEL.gguf TOKENS RUNS      with PYTHON set to the interpreter that has asl_gguf
set -eu
usage="usage: run.sh MODEL.gguf TOKENS RUNS"
model=${1:?$usage} tokens=${2:?$usage} runs=${3:?$usage}
python=${PYTHON:-python3}

bench() {
    kind=$1
    shift
    "$python" -m asl_gguf bench "$kind" -m "$model" -ngl 999 -fa --tokens "$tokens" -b 0.1 --dequant off --json "$@"
}

# A model without a trained ranking has no layer where it settles: FastKV selects at a given one, layer 15 of 32.
bench prefill --policy fastkv --runs "$runs"
bench decode --policy fastkv --runs "$runs" --decode 64
bench memory --policy fastkv
