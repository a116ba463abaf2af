# Targets that run Python set up .venv first, and again only when the dependencies or the kernel sources change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Number of test processes; auto is one per core.
JOBS ?= auto

# The install builds the kernel library, so a change of its sources triggers a new install.
NATIVE := $(wildcard native/CMakeLists.txt native/*/*.cpp native/*/*.h)

.PHONY: fuzz native-checks help demo test test-all wheel-test lint clang bench-kernels sanitize tsan arm64 bench docs clean

help:
	@echo "make demo   train, convert, distill and measure a network on handwritten digits; prints a table, writes a page"
	@echo "make test   run the tests"
	@echo "make test-all  run the slow ones, too (10 minutes more)"
	@echo "make wheel-test   install the wheel into an empty environment and run the demo there (4 minutes)"
	@echo "make lint   ruff, mypy --strict"
	@echo "make sanitize  run the kernel tests under sanitizers, with AVX-512 and AMX emulated where the processor lacks them"
	@echo "make native-checks  clang, arm64, sanitize and tsan: after a change of native/"
	@echo "make tsan  run the tests of workers and callers in several threads under ThreadSanitizer"
	@echo "make clang  run the kernels' tests with the library built by Clang"
	@echo "make fuzz  damage network files for SECONDS (60) with the reader and the kernels under sanitizers"
	@echo "make bench-kernels  time the kernels by shape against the measured peak (1 minute)"
	@echo "make arm64  run the kernel tests with the ARM64 library, emulated by QEMU"
	@echo "make bench  measure what benchmarks/results/ lacks and print all results (hours; CIFAR10=npz:FOLDER CHECKPOINTS=FOLDER)"
	@echo "make docs   regenerate figures, benchmarks.md and the notebook, run the documents' code, build site/index.html"
	@echo "make clean  remove .venv, caches, runs/ and site/"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; this is $$($(PYTHON) --version). Choose another: make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)

# PyTorch's default build for Linux brings gigabytes of CUDA libraries. Without an NVIDIA driver its CPU build is installed, from
# an index of PyTorch's own; where that cannot be reached within seconds, the default build follows with the other packages.
CPU_WHEELS ?= https://download.pytorch.org/whl/cpu
$(VENV)/.torch: $(BIN)/python constraints.txt
	@if [ "$$(uname -s)" = Linux ] && ! [ -e /proc/driver/nvidia/version ] && ! command -v nvidia-smi >/dev/null; then \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --timeout 5 --retries 0 \
			--constraint constraints.txt --index-url $(CPU_WHEELS) torch 2>/dev/null || \
		echo "PyTorch's CPU build cannot be fetched from $(CPU_WHEELS): installing the default build, which is larger"; \
	fi
	@touch $@

# One stamp per set of extras in the same environment. PIP_BUILD_CONSTRAINT pins the versions of the isolated build.
$(VENV)/.installed-%: $(VENV)/.torch pyproject.toml constraints.txt $(NATIVE)
	PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

demo: $(VENV)/.installed-demo
	OMP_WAIT_POLICY=PASSIVE $(BIN)/separable demo --output runs/demo

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal -m 'not slow'

test-all: $(VENV)/.installed-test
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal

wheel-test: $(VENV)/.installed-test
	TORCH_SEPARABLE_WHEEL_TEST=1 $(BIN)/python -m pytest tests/packaging

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

KERNEL_TESTS := $(addprefix tests/runtime/test_,dense_kernels.py depthwise_kernels.py elementwise_kernels.py)

# The sanitizer libraries must be loaded before Python. Leaks are not checked: Python never frees some of its own memory.
SANITIZED := build/sanitize
sanitize: $(VENV)/.installed-test
	cmake -S native -B $(SANITIZED) -DTS_SANITIZE=address,undefined -DTS_EMULATE=ON >/dev/null
	cmake --build $(SANITIZED) --parallel
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
		TORCH_SEPARABLE_LIBRARY=$(CURDIR)/$(SANITIZED)/libtorch_separable.so \
		$(BIN)/python -m pytest --numprocesses $(JOBS) \
		$(KERNEL_TESTS) tests/runtime/test_depth_first.py tests/runtime/test_sanitizers.py

# ThreadSanitizer watches the library alone; the suppression file says what it would misread. The tests' threads are POSIX
# threads, which it understands; those of libgomp never start, as PyTorch runs on one thread. All instruction sets share
# the scheduler, so one of them is enough.
TSAN := build/tsan
TSAN_TESTS ?= $(addprefix tests/runtime/test_,threads.py thread_pool.py depth_first.py) $(KERNEL_TESTS)
tsan: $(VENV)/.installed-test
	cmake -S native -B $(TSAN) -DTS_SANITIZE=thread -DTS_ONLY=baseline >/dev/null
	cmake --build $(TSAN) --parallel
	LD_PRELOAD="$$($(CXX) -print-file-name=libtsan.so)" \
		TSAN_OPTIONS="halt_on_error=1 suppressions=$(CURDIR)/tests/runtime/tsan_suppressions.txt" \
		TORCH_SEPARABLE_LIBRARY=$(CURDIR)/$(TSAN)/libtorch_separable.so \
		$(BIN)/python -m pytest --numprocesses $(JOBS) $(TSAN_TESTS)

# GCC builds the library that `make test` runs; this is the other compiler. CLANG_SETS names the instruction sets to
# build, separated by semicolons: all where it is empty.
CLANG := build/clang
CLANG_SETS ?=
CLANG_TESTS ?= $(KERNEL_TESTS) $(addprefix tests/runtime/test_,cpu_features.py int8.py)
CLANG_CXX ?= clang++
clang: $(VENV)/.installed-test
	@command -v $(CLANG_CXX) >/dev/null || { echo "$(CLANG_CXX) is needed (Debian: apt install clang)"; exit 2; }
	cmake -S native -B $(CLANG) -DCMAKE_CXX_COMPILER=$(CLANG_CXX) '-DTS_ONLY=$(CLANG_SETS)' >/dev/null
	cmake --build $(CLANG) --parallel
	TORCH_SEPARABLE_LIBRARY=$(CURDIR)/$(CLANG)/libtorch_separable.so \
		$(BIN)/python -m pytest --numprocesses $(JOBS) $(CLANG_TESTS)

# The files are written by the ordinary library for the baseline set, and damaged by native/standalone/fuzz/fuzz.cpp.
# docs/native-format.md has the command for libFuzzer.
FUZZ := build/fuzz
SECONDS ?= 60
fuzz: $(VENV)/.installed-test
	cmake -S native -B $(FUZZ) -DTS_SANITIZE=address,undefined -DTS_ONLY=baseline -DTS_STANDALONE=ON >/dev/null
	cmake --build $(FUZZ) --parallel --target separable
	TORCH_SEPARABLE_ISA=baseline $(BIN)/python native/standalone/fuzz/seeds.py $(FUZZ)/seeds
	$(CXX) -std=c++17 -O1 -g -fsanitize=address,undefined native/standalone/fuzz/fuzz.cpp -L$(FUZZ)/standalone -lseparable \
		-Wl,-rpath,$(CURDIR)/$(FUZZ)/standalone -o $(FUZZ)/damage
	cd $(FUZZ) && ./damage $(SECONDS) $$$$ seeds/*.tsn

bench-kernels: $(VENV)/.installed-test
	$(BIN)/python benchmarks/kernels.py

# Only the library runs under emulation: tests/runtime/runner.cpp calls it for the tests, which run natively.
ARM64 := build/arm64
ARM64_CXX ?= aarch64-linux-gnu-g++
ARM64_EMULATOR ?= qemu-aarch64 -L /usr/aarch64-linux-gnu
arm64: $(VENV)/.installed-test
	@command -v $(ARM64_CXX) $(firstword $(ARM64_EMULATOR)) >/dev/null || { \
		echo "$(ARM64_CXX) and $(firstword $(ARM64_EMULATOR)) are needed (Debian: apt install g++-aarch64-linux-gnu qemu-user)"; exit 2; }
	cmake -S native -B $(ARM64) -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=$(ARM64_CXX) >/dev/null
	cmake --build $(ARM64) --parallel
	$(ARM64_CXX) -std=c++17 -O1 -Wall -Wextra -Werror tests/runtime/runner.cpp -o $(ARM64)/runner -pthread -ldl
	TORCH_SEPARABLE_TEST_RUNNER="$(ARM64_EMULATOR) $(CURDIR)/$(ARM64)/runner $(CURDIR)/$(ARM64)/libtorch_separable.so" \
		$(BIN)/python -m pytest --numprocesses $(JOBS) $(KERNEL_TESTS)

CIFAR10 ?= npz:cifar10
CHECKPOINTS ?= ../shared/data
bench: $(VENV)/.installed-test
	$(BIN)/python benchmarks/conversion.py table --data $(CIFAR10) --checkpoints $(CHECKPOINTS)
	$(BIN)/python benchmarks/conversion.py ablation --data $(CIFAR10) --checkpoints $(CHECKPOINTS)
	$(BIN)/python benchmarks/runtime.py measure --checkpoints $(CHECKPOINTS)

docs: $(VENV)/.installed-test
	$(BIN)/python docs/figures/make.py
	$(BIN)/python docs/make_benchmarks.py
	$(BIN)/python docs/make_tutorial.py
	$(BIN)/python docs/website/build.py
	$(BIN)/python -m pytest tests/docs tests/explanation

clean:
	rm -rf $(VENV) runs site build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

# All builds of the kernel library, whole; .ci/run makes two of them in part.
native-checks: clang arm64 sanitize tsan
