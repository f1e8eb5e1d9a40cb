# A fresh clone needs Python 3.11 or newer, make and a package index: every target below makes the environment it runs in.
# PYTHON=python3.12 chooses another interpreter; `make test SLOW=1` adds the slow tests; ARGS are handed to pytest.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
PEERS := .venv-peers/.installed
MARKED := $(if $(SLOW),,-m "not slow")

# Two test processes with one thread each use two cores; more threads would only fight for them.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.PHONY: quickstart test lint peers clean

quickstart: $(INSTALLED)
	@$(BIN)/temporallens run studies/quickstart.yaml --out runs/quickstart

test: $(INSTALLED)
	@$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist loadgroup $(MARKED) $(ARGS)

lint: $(INSTALLED)
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

# Other libraries, for `python -m benchmarks`, in an environment of their own: their needs contradict ours and each other's.
peers: $(PEERS)

$(PEERS): benchmarks/peers-constraints.txt
	@echo "installing the libraries that benchmarks compare with into .venv-peers (minutes, once)"
	@$(PYTHON) -m venv .venv-peers \
		|| { echo "error: $(PYTHON) could not make the environment .venv-peers here; mend what it says above, then run make peers again" >&2; exit 1; }
	@{ .venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -c benchmarks/peers-constraints.txt sae-lens eai-sparsify torch \
		&& .venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -c benchmarks/peers-constraints.txt dictionary-learning; } \
		> .venv-peers/install.log 2>&1 \
		|| { echo "error: pip could not install the packages ($$(sed -n 's/^ *ERROR: //p' .venv-peers/install.log | head -n 1)); all that pip said:" \
		     ".venv-peers/install.log" >&2; exit 1; }
	@touch $@

# Removes what these targets made, except runs/, which holds results.
clean:
	@rm -rf .venv .venv-peers .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist src/*.egg-info
	@find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null 2>&1 \
		|| { echo "error: $(PYTHON) is not installed; install Python 3.11 or newer, then run make again" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: $$($(PYTHON) --version) is too old; run make again with PYTHON= a Python 3.11 or newer" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null \
		|| { echo "error: this Python cannot make environments; install its venv module (Debian, Ubuntu: python3-venv), then run make again" >&2; exit 1; }
	@echo "installing TemporalLens and what it needs into .venv (minutes, once)"
	@$(PYTHON) -m venv .venv \
		|| { echo "error: $(PYTHON) could not make the environment .venv here; mend what it says above, then run make again" >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' > .venv/install.log 2>&1 \
		|| { echo "error: pip could not install the packages ($$(sed -n 's/^ *ERROR: //p' .venv/install.log | head -n 1)); check that a package index" \
		     "can be reached and the disk has space (all that pip said: .venv/install.log), then run make again" >&2; exit 1; }
	@touch $@
