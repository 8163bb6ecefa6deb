#!/usr/bin/env bash
# repair-wheel.sh WHEEL FOLDER: puts the wheel into the folder with the libraries it needs beyond the system's, and
# the tag of the oldest system that it runs on.
set -euo pipefail
wheel=$1 folder=$2

case $(uname -s) in
    # what is loaded by path at run time has its neighbours beside it: only OpenMP is from outside
    # and CUDA, whose driver and libraries are the machine's own
    Linux)  auditwheel repair --exclude 'libcuda.so.*' --exclude 'libcudart.so.*' --exclude 'libcublas*.so.*' \
                --wheel-dir "$folder" "$wheel" ;;
    Darwin) delocate-wheel --wheel-dir "$folder" "$wheel" ;;
    *)      cp "$wheel" "$folder" ;;
esac
