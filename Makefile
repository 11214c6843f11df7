# Every target makes .venv and installs into it when that is needed, and only then.
.PHONY: demo test fast slow test-growth test-nodes lint style types bench bench-compare release
.DELETE_ON_ERROR:

# Kept inside the environment: whoever removes .venv gets a new one.
INSTALLED := .venv/.installed
PYTHON ?= $(firstword $(foreach name,python3 python3.11 python3.12 python3.13,$(shell \
  $(name) -c 'import sys; sys.version_info >= (3, 11) and print("$(name)")' 2>/dev/null)))
RUN := .venv/bin/python -m

# Compiled modules are kept, whatever the shell says: else each of the hundreds of processes that tests start compiles
# what it imports of this project anew.
unexport PYTHONDONTWRITEBYTECODE

$(INSTALLED): pyproject.toml constraints.txt
	@test -n '$(PYTHON)' || { echo 'error: no Python >= 3.11 found; name one: make PYTHON=/path/to/python3.11' >&2; exit 1; }
	test -x .venv/bin/pip || $(PYTHON) -m venv --clear .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# The whole road on synthetic people: data, crops, training, evaluation, search, report. OUT names its directory.
OUT ?= demo
demo: $(INSTALLED)
	$(RUN) efafnet.pipelines demo $(OUT)

lint: style types

style: $(INSTALLED)
	$(RUN) ruff check
	$(RUN) ruff format --check
	.venv/bin/shellcheck .ci/run platform/deploy/aws_prepare.sh tests/machines.sh

# Last in line for a core: beside the slow tests it takes what they leave over while they wait for processes of theirs.
types: $(INSTALLED)
	nice -n 19 $(RUN) mypy

# Fast tests first: most mistakes show within a minute or two.
test: $(INSTALLED)
	$(MAKE) --no-print-directory style fast
	$(MAKE) --no-print-directory -j 2 types slow

# What the tests of a module share is made once, for they run in one process.
fast: $(INSTALLED)
	$(RUN) pytest -m 'not slow' -n auto --dist loadfile --durations=10

# Each process has a Ray of its own; modules are begun in the order of tests/conftest.py, the longest first.
slow: $(INSTALLED)
	$(RUN) pytest -m slow -n auto --dist loadfile --no-loadscope-reorder --durations=15

# A cluster whose GPU machines are started and ended by Ray's autoscaler, pretended on this one: some minutes.
test-growth: $(INSTALLED)
	GROWING=1 $(RUN) pytest -s tests/test_growth.py

# A cluster of machines pretended on this one, of which one dies. Needs root, and a quarter of an hour.
test-nodes: $(INSTALLED)
	tests/machines.sh 3 .venv/bin/python -m pytest -s tests/test_nodes.py

bench: $(INSTALLED)
	@set -e; for claim in $(basename $(notdir $(wildcard benchmarks/bench_*.py))); do \
	  echo "== $$claim"; $(RUN) benchmarks.$$claim; done

# What became worse since the figures in benchmarks/figures/ were kept on this kind of machine. KEEP=--keep keeps new ones.
bench-compare: $(INSTALLED)
	$(RUN) benchmarks.compare $(KEEP)

# One wheel in dist/, held against the tree, installed alone in an empty directory and run there.
release: lint
	rm -rf build dist
	$(RUN) pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .
	$(RUN) tests.check_wheel dist
