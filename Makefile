# install  the environment in .venv, with the pinned versions of constraints.txt
# demo     drawn photos -> records -> training -> mAP -> pictures, in a few minutes on a CPU
# test     every test
# test-beam  the conversion as an Apache Beam pipeline, in an environment of its own (.venv-beam) without TensorFlow
# lint     ruff
# docs     the documentation as a site, in site/
# bench    the input pipeline's speed beside decoding alone
#
# Each does what it needs first. STACK=addons picks TensorFlow 2.15 with tensorflow-addons (.venv-addons).

STACK ?= default
PYTHON ?= python3

ifeq ($(STACK),default)
VENV := .venv
CONSTRAINTS := constraints.txt
EXTRAS := onnx,docs,dev
else ifeq ($(STACK),addons)
VENV := .venv-addons
CONSTRAINTS := constraints-addons.txt
EXTRAS := addons,onnx,dev
else
$(error STACK is "$(STACK)"; choose default or addons)
endif

BEAM := .venv-beam
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed

export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: install demo test test-beam lint docs bench
.DEFAULT_GOAL := install

install: $(STAMP)

$(STAMP): setup.py $(CONSTRAINTS)
ifeq ($(STACK),addons)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info >= (3, 12))' || \
		{ echo "tensorflow-addons needs Python 3.10 or 3.11: make install STACK=addons PYTHON=python3.11" >&2; exit 2; }
endif
	@$(RUN) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (some minutes the first time)" >&2
	@if [ -t 1 ]; then quiet=; else quiet=-q; fi; \
		$(RUN) -m pip install $$quiet --disable-pip-version-check -c $(CONSTRAINTS) -e ".[$(EXTRAS)]"
	@touch $@

demo: $(STAMP)
	@$(RUN) tools/demo.py

test: $(STAMP)
	@$(RUN) -m pytest -n 2

test-beam: $(BEAM)/.installed
	@$(BEAM)/bin/python -m pytest --noconftest tests/test_beam.py

$(BEAM)/.installed: constraints-beam.txt
	@$(BEAM)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(BEAM)
	@$(BEAM)/bin/python -m pip install -q --disable-pip-version-check -c constraints-beam.txt \
		apache-beam numpy pillow rich pytest
	@touch $@

lint: $(STAMP)
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .

docs: $(STAMP)
	@$(RUN) -m pip install -q --disable-pip-version-check -c $(CONSTRAINTS) -e ".[docs]"
	@NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict -q -d site
	@echo "open site/index.html"

bench: $(STAMP)
	@$(RUN) benchmarks/input_pipeline.py
