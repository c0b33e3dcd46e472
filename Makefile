# Everything runs in .venv, which `make` itself sets up from requirements.lock. Needs only Python >= 3.11.5, make and a package registry.
PYTHON ?= python3
UV     := uv==0.13.9
BIN    := .venv/bin
HOME_  := $(or $(MLTRADER_HOME),.mltrader)

.PHONY: run test bench lab setup data pipeline docs picture lock lint sbom security clean help
.DEFAULT_GOAL := help

help:           ## this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

run: data       ## bring the data, build the whole DAG, say where the report is
	@$(BIN)/ploomber build --env--home $(HOME_)

test: data      ## every test: notebooks, pytest, a smoke build of the DAG
	@$(BIN)/python -m pytest -c tests/pytest.ini tests

bench: run      ## the benchmark book, docs/benchmarks.md: hours at first, goes on where it was (QUICK=--quick: minutes)
	@$(BIN)/python benchmarks/book.py --peers $(QUICK)

lab: setup      ## JupyterLab on the notebooks
	@$(BIN)/jupyter lab nbs

data: setup
	@$(BIN)/mltrader data sync

setup: .venv/.ready ## the environment in .venv

.venv/.ready: requirements.lock settings.ini setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 5) and "mltrader needs Python 3.11.5 or newer; found " + sys.version.split()[0] + ". Set PYTHON=/path/to/python3.11.")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(UV)
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@$(BIN)/mltrader setup
	@touch $@

pipeline: setup ## write pipeline.yaml from the table in nbs/51_reports.ipynb
	@$(BIN)/python -c "from pathlib import Path; from mltrader.reports import pipeline_yaml; Path('pipeline.yaml').write_text(pipeline_yaml(Path('.')))"

docs: setup     ## docs/reference from docstrings, settings, commands and tables
	@$(BIN)/python docs/build_reference.py

picture: setup  ## docs/img/summary.png, the README's picture, from the newest run (needs Chromium)
	@$(BIN)/python docs/picture.py

# Left out: rfc3987-syntax (with lark), an extra of jsonschema that Jupyter's events ask for. It compiles a grammar whenever nbformat is imported, a second of each `ploomber` command; without it, formats of addresses are not checked.
lock: setup     ## resolve requirements.in into requirements.lock, keeping the versions already there (UPGRADE=--upgrade: the newest)
	@$(BIN)/uv pip compile -q $(UPGRADE) requirements.in -o requirements.lock --generate-hashes --no-emit-package mltrader \
	  --no-emit-package rfc3987-syntax --no-emit-package lark --python-version 3.11.5 --no-annotate --no-header
	@sed -i '1i # Exact versions, with hashes. Written by `make lock` from requirements.in; needs Python >= 3.11.5.' requirements.lock

lint: setup     ## ruff on the exported package and the tests
	@$(BIN)/ruff check mltrader tests

SBOM ?= .mltrader/sbom.json
sbom: setup     ## a bill of materials (CycloneDX) of requirements.lock, into .mltrader/sbom.json; it looks nothing up
	@mkdir -p $(dir $(SBOM))
	@$(BIN)/cyclonedx-py requirements --output-reproducible --of JSON -o $(SBOM) requirements.lock

security: setup ## bandit and ruff's security rules on the package
	@$(BIN)/bandit -q -ll -r mltrader
	@$(BIN)/ruff check --select S mltrader

clean:          ## remove state and reports (asks nothing; history of decisions is lost)
	rm -rf .mltrader reports/run_* reports/compare_* reports/index.html
