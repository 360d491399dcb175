# make demo: the embedded survey from SQL to redshifts and figures. make test: every test but some long
# ones, which make test-long runs.
# make rehearsal: surveys/sdss-dr12.yaml against services on this machine that stand for SDSS's.
# make slurm-test: the embedded survey on a Slurm that is installed and started here (root, Debian).

PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

UGRIZ_SLURM ?= embedded

.PHONY: demo test test-long lint setup benchmark rehearsal slurm-test

demo: setup
	snakemake --cores all
	@echo "Look at results/pictures/, results/evaluate/photoz/ and results/search/moco/"

test: setup
	python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test-long: setup
	python -m pytest -n auto --dist loadfile -m long

lint: setup
	ruff check
	ruff format --check
	snakefmt --check Snakefile workflow
	snakemake --lint

rehearsal: setup
	python benchmarks/rehearsal.py $(REHEARSAL)

slurm-test: setup
	@test -x /usr/sbin/slurmd && test -x /usr/sbin/munged || \
	{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq slurm-wlm munge; } \
	> /dev/null 2>&1 || echo "slurm-wlm and munge could not be installed (apt-get, as root)"
	UGRIZ_SLURM=$(UGRIZ_SLURM) python -m pytest -m slurm -v tests/test_slurm.py $(SLURM_TESTS)

benchmark: setup
	python benchmarks/cutouts.py
	python benchmarks/reading.py

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml envs/constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("ugriz needs Python 3.11 or newer; make PYTHON=python3.x") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV) || { echo "python3 -m venv failed; on Debian: apt install python3-venv"; exit 1; }
	python -m pip install --quiet --constraint envs/constraints.txt --editable '.[test]'
	touch $@
