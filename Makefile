# A fresh clone needs Python 3.11 or newer, make and a package index: every target below makes the environment it runs in.
# PYTHON=python3.12 chooses another interpreter; `make test SLOW=1` adds the slow tests, and checks the types and the shapes of what
# every function takes and gives; ARGS are handed to pytest.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
PEERS := .venv-peers/.installed
PARITY := .venv-parity/.installed
COMMA := ,
CHOSEN := $(if $(SLOW),--jaxtyping-packages=temporallens$(COMMA)typechecker.check,-m "not slow")

# Two test processes with one thread each use two cores; more threads would only fight for them. The tests of a file run in one of them,
# so that what they share is made once.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.PHONY: quickstart test lint dist docs chaos peers interop parity clean

quickstart: $(INSTALLED)
	@$(BIN)/temporallens run studies/quickstart.yaml --out runs/quickstart

test: $(INSTALLED)
	@$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist loadfile $(CHOSEN) $(ARGS)

lint: $(INSTALLED)
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

# The source archive, and the wheel built from it, in dist/.
dist: $(INSTALLED)
	@$(BIN)/python -m build --no-isolation --outdir dist

# The site, from docs/ and docstrings, in site/index.html; warnings are errors.
docs: $(INSTALLED)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs --quiet build --strict
	@echo "site/index.html; its search needs a server: $(BIN)/python -m http.server -d site"

# A small study is killed KILLS times at random moments; the last line says whether anything was lost (docs/reliability.md).
chaos: $(INSTALLED)
	@$(ONE_THREAD) $(BIN)/python -m tools.chaos --kills $(or $(KILLS),200) $(ARGS)

# Other libraries, for `python -m benchmarks` and `make interop`, in an environment of their own: their needs contradict ours and each other's.
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

# Dictionaries that these libraries save, read here, against what they compute; the last line says how many formats agree.
interop: $(INSTALLED) $(PEERS)
	@$(BIN)/python -m tools.interop $(ARGS)

# Our sparse probing against that of the unmodified sae_bench, which runs in an environment of its own; the last line is the largest
# difference. The package declares more than sparse probing needs (torchvision for CUDA, clients of services), so it goes in without.
parity: $(INSTALLED) $(PARITY)
	@$(BIN)/python -m tools.parity $(ARGS)

$(PARITY): tools/parity-constraints.txt
	@echo "installing sae_bench into .venv-parity (minutes, once)"
	@$(PYTHON) -m venv .venv-parity \
		|| { echo "error: $(PYTHON) could not make the environment .venv-parity here; mend what it says above, then run make parity again" >&2; exit 1; }
	@{ .venv-parity/bin/python -m pip install --quiet --disable-pip-version-check -c tools/parity-constraints.txt \
			torch sae-lens transformer-lens scikit-learn beartype filelock tabulate \
		&& .venv-parity/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -c tools/parity-constraints.txt sae-bench; } \
		> .venv-parity/install.log 2>&1 \
		|| { echo "error: pip could not install the packages ($$(sed -n 's/^ *ERROR: //p' .venv-parity/install.log | head -n 1)); all that pip said:" \
		     ".venv-parity/install.log" >&2; exit 1; }
	@touch $@

# Removes what these targets made, except runs/, which holds results.
clean:
	@rm -rf .venv .venv-peers .venv-parity .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist site src/*.egg-info
	@find src tests benchmarks tools -name __pycache__ -type d -prune -exec rm -rf {} +

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
