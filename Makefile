# `make train` and `make test` do all of their own set-up. The same as plain commands: README.md.
PYTHON ?= python3
BIN := .venv/bin
RUN := work_dirs/davpt_upernet_miniscenes
CONFIG := configs/davpt_upernet_miniscenes.py
WEIGHTS := weights/vit_small_patch14_dinov2.safetensors

STACKLESS := datasets/test_archives datasets/test_download datasets/test_prepare weights/test_fetch weights/test_convert
STACKLESS += guidance/test_guidance_functions guidance/test_assignment tuning/test_battery trunks/test_projections
STACKLESS += docs/test_figures docs/test_links
STACKLESS += faults/test_downloads test_architecture
# Single tests of torch and timm, which are the same there.
STACKLESS_TESTS := benchmarks/test_speed.py::test_quick
STACKLESS_TESTS += models/test_compile.py::test_backbone_compiles_without_a_graph_break

.PHONY: train test test-upstream test-faults docs lint types format clean

train: .venv/installed $(WEIGHTS)
	$(BIN)/python tools/train.py $(CONFIG)
	$(BIN)/python tools/test.py $(CONFIG) $$(cat $(RUN)/last_checkpoint)

test: .venv/installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadscope --cov=mmseg_davpt --cov-report=term:skip-covered

# The same tests on upstream's mmsegmentation 1.2.2, but for those that meet nothing of OpenMMLab.
test-upstream: .venv-upstream/installed
	.venv-upstream/bin/python -m pytest -n 2 --dist loadscope $(addprefix --ignore=tests/,$(addsuffix .py,$(STACKLESS))) \
		$(addprefix --deselect=tests/,$(STACKLESS_TESTS))

# The long fault injection; a fast selection is part of the tests. -s shows the outcomes.
test-faults: .venv/installed-dev
	$(BIN)/python -m pytest -s -m faults tests/faults

# Rules and format of the code, spelling of every file that git tracks, prose of the documentation.
lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	git ls-files -z | xargs -0 $(BIN)/codespell
	git ls-files -z '*.md' | xargs -0 $(BIN)/proselint check

types: .venv/installed-dev
	$(BIN)/mypy

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The site, in site/. Warnings are errors: links and headings that do not exist, pages that the navigation lacks.
docs: .venv-docs/installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

$(WEIGHTS): | .venv/installed
	$(BIN)/python tools/get_weights.py vit_small_patch14_dinov2

.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -r requirements.txt
	$(BIN)/python -m pip install --no-deps -e .
	touch $@

.venv/installed-dev: .venv/installed requirements/dev.txt
	$(BIN)/python -m pip install -r requirements/dev.txt
	touch $@

.venv-upstream/installed: requirements/upstream.txt requirements/dev.txt pyproject.toml
	$(PYTHON) -m venv .venv-upstream
	.venv-upstream/bin/python -m pip install -r requirements/upstream.txt -r requirements/dev.txt
	.venv-upstream/bin/python -m pip install --no-deps -e .
	touch $@

.venv-docs/installed: requirements/docs.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install -r requirements/docs.txt
	touch $@

clean:
	rm -rf .venv .venv-docs .venv-upstream site work_dirs data/miniscenes
