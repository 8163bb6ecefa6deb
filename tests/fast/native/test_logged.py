"""llama.cpp's reasons are in our errors, and Ctrl-C is not lost while it logs."""

from __future__ import annotations

import ctypes
import os
import signal
import threading

import pytest

from asl_gguf import Llama
from asl_gguf.errors import ModelError
from asl_gguf.models.gguf_header import n_ctx_train
from asl_gguf.native.bindings import llama_cpp
from asl_gguf.native.logged import Logged, errors_logged
from asl_gguf.native.vocabulary import load_model
from harness import prompt  # noqa: F401  (silences llama.cpp's log in this process)


def current() -> int | None:
    """Address of whoever has llama.cpp's log."""
    callback, data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(callback), ctypes.byref(data))
    return ctypes.cast(callback, ctypes.c_void_p).value


@pytest.fixture
def broken(tmp_path, tiny_model):
    """A file of another version, and one that ends early."""
    (tmp_path / "version.gguf").write_bytes(b"GGUF" + b"junk" * 9)
    whole = tiny_model("llama").read_bytes()
    (tmp_path / "short.gguf").write_bytes(whole[: len(whole) // 2])
    return {"version": str(tmp_path / "version.gguf"), "short": str(tmp_path / "short.gguf")}


@pytest.mark.parametrize(
    "work, name, reason",
    [
        (load_model, "version", "this GGUF file is version"),
        (load_model, "short", "model is corrupted or incomplete"),
        (n_ctx_train, "version", "this GGUF file is version"),
        (Llama, "short", "model is corrupted or incomplete"),
        (lambda path: Llama(path, asl_budget=0.2, verbose=False), "short", "model is corrupted or incomplete"),
    ],
)
def test_the_reason_is_said(broken, work, name, reason):
    before = current()
    with pytest.raises(ModelError, match=reason):
        work(broken[name])
    assert current() == before


def test_lines_that_say_something():
    logged = Logged()
    assert logged.because == ""
    logged.lines = ["llama_model_load: error loading model: llama_model_loader: failed to load model from x\n"]
    assert logged.because == ""
    logged.lines.append("llama_model_load: error loading model: unknown model architecture: 'foo'\n")
    assert logged.because == ": unknown model architecture: 'foo'"


def test_others_keep_the_log(broken):
    heard: list[bytes] = []
    theirs = llama_cpp.llama_log_callback(lambda level, text, data: heard.append(text))
    before, data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(before), ctypes.byref(data))
    llama_cpp.llama_log_set(theirs, None)
    try:
        with pytest.raises(ModelError):
            load_model(broken["version"])
        assert any(b"this GGUF file is version" in text for text in heard)
    finally:
        llama_cpp.llama_log_set(before, data)


def test_each_thread_has_its_own(broken):
    reasons = {}

    def load(name: str) -> None:
        for _ in range(20):
            try:
                load_model(broken[name])
            except ModelError as err:
                reasons.setdefault(name, set()).add(str(err).partition(": ")[2])

    before, threads = current(), [threading.Thread(target=load, args=(name,)) for name in broken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(said) == 1 for said in reasons.values()) and reasons["short"] != reasons["version"]
    assert current() == before


def test_ctrl_c_within_a_log_line_is_not_lost(broken, request):
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process ignores it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, handler))
    theirs = llama_cpp.llama_log_callback(lambda level, text, data: os.kill(os.getpid(), signal.SIGINT))
    before, data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(before), ctypes.byref(data))
    llama_cpp.llama_log_set(theirs, None)
    try:
        with pytest.raises(KeyboardInterrupt), errors_logged():
            llama_cpp.llama_model_load_from_file(broken["version"].encode(), llama_cpp.llama_model_default_params())
    finally:
        llama_cpp.llama_log_set(before, data)


@pytest.mark.parametrize("verbose", [False, True])
def test_warnings_are_said_to_those_who_want_to_know(verbose, capsys, monkeypatch):
    logger = llama_cpp._logger.logger
    monkeypatch.setattr(logger, "level", logger.level)
    llama_cpp._logger.set_verbose(verbose)
    llama_cpp._logger.llama_log_callback(3, b"full-size SWA cache\n", None)
    assert capsys.readouterr().err == ("full-size SWA cache\n" if verbose else "")


def test_a_log_set_meanwhile_stays(broken):
    theirs = llama_cpp.llama_log_callback(lambda *_: None)
    before, data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(before), ctypes.byref(data))
    try:
        with errors_logged():
            llama_cpp.llama_log_set(theirs, None)
            set_by_them = current()
        assert current() == set_by_them
    finally:
        llama_cpp.llama_log_set(before, data)


def test_ours_put_back_after_us_does_not_call_itself(broken):
    """As what silences the log for a while does on another thread."""
    before, data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(before), ctypes.byref(data))
    ours, of_ours = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    with errors_logged():
        llama_cpp.llama_log_get(ctypes.byref(ours), ctypes.byref(of_ours))
    llama_cpp.llama_log_set(ours, of_ours)
    try:
        with pytest.raises(ModelError, match="this GGUF file is version"):
            load_model(broken["version"])
    finally:
        llama_cpp.llama_log_set(before, data)
