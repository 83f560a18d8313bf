# `make train` and `make test` do all of their own set-up. The same as plain commands: README.md.
PYTHON ?= python3
BIN := .venv/bin
RUN := work_dirs/davpt_upernet_miniscenes
CONFIG := configs/davpt_upernet_miniscenes.py
WEIGHTS := weights/vit_small_patch14_dinov2.safetensors

# Tests of code that meets nothing of OpenMMLab, below tests/: the same on both stacks.
STACKLESS := benchmarks docs guidance trunks test_architecture.py test_files.py test_front_pages.py test_package.py
STACKLESS += $(addprefix datasets/,test_archives.py test_download.py test_prepare.py)
STACKLESS += $(addprefix weights/,test_fetch.py test_convert.py test_formats.py)
STACKLESS += $(addprefix faults/,test_downloads.py test_weight_files.py)
STACKLESS += $(addprefix reports/,test_overlay.py test_prompt_figures.py)
STACKLESS += tuning/test_battery.py tuning/test_attention.py models/test_compile.py export/test_programs.py
STACKLESS += apis/test_demo.py

.PHONY: train test test-upstream test-faults docs lint types format clean

# TIMM_FUSED_ATTN=0: attention that is written out is faster on small crops in bfloat16.
train: export TIMM_FUSED_ATTN = 0
train: .venv/installed $(WEIGHTS)
	$(BIN)/python tools/train.py $(CONFIG)
	$(BIN)/python tools/test.py $(CONFIG) $$(cat $(RUN)/last_checkpoint)

test: .venv/installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadscope --cov=mmseg_davpt --cov-report=term:skip-covered

# The same tests on upstream's mmsegmentation 1.2.2, but for those that meet nothing of OpenMMLab.
test-upstream: .venv-upstream/installed
	.venv-upstream/bin/python -m pytest -n 2 --dist loadscope $(addprefix --ignore=tests/,$(STACKLESS))

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
