PYTHON ?= python3
BIN := .venv/bin
SIZE ?= 1GB
ROUNDS ?= 3
FORMS ?= safetensors,bin
TINY := tests/data/tiny
INSTALLED := .venv/installed
WORKERS ?= logical
#: What needs neither torch nor transformers; `--without-torch` makes sure of it.
FAST := tests/planning tests/routing/test_route.py tests/routing/test_rows.py tests/jobs/test_output_problems.py \
  tests/jobs/test_source_configs.py tests/jobs/test_used.py tests/rulefile tests/rewrite tests/authoring/lint tests/authoring/test_explain.py \
  tests/core/test_fold.py tests/post_load/test_old_bytes.py \
  tests/test_rooms.py tests/test_without_torch.py
PROGRAMS := $(shell sed -n 's/^\([a-z][^ ]*\) .*/\1/p' .ci/programs.txt)
VERSIONS := $(shell sed -n 's/^\([0-9][^ ]*\) .*/\1/p' .ci/versions.txt)

# The tests start some hundred processes: each would compile the package again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install versions programs chromium demo test test-versions test-programs test-fast check docs report-assets reference compat text-models conversions bench fuzz

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 20

install: $(INSTALLED)  ## into .venv, with the versions of .ci/constraints.txt

$(INSTALLED): pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt --editable '.[dev]'
	@touch $@

versions: $(VERSIONS:%=.venv/transformers-%/installed)  ## other versions of transformers, for the tests: .ci/versions.txt

.venv/transformers-%/installed: .ci/versions.txt | $(INSTALLED)
	rm -rf $(@D)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $(@D) \
	  transformers==$* $$(sed -n 's/^$* //p' .ci/versions.txt)
	@touch $@

programs: install $(PROGRAMS:%=.venv/%/installed)  ## install the programs of .ci/programs.txt, and ask each about every family
	LLAVA_REMAP_PROGRAMS=required $(BIN)/python -m pytest -rfEs -m 'programs and not long'
	$(BIN)/python -m tools.programs_table

# A new line in programs.txt, or a new list, installs its own program again, and no other.
$(PROGRAMS:%=.venv/%/installed): .venv/%/installed: .ci/programs.txt $(wildcard .ci/programs/*.txt) | $(INSTALLED)
	line="$$(sed -n 's/^$* //p' .ci/programs.txt)"; \
	if [ "$$(cat $@ 2>/dev/null)" != "$$line" ] || [ .ci/programs/$*.txt -nt $@ ]; then \
	  rm -rf $(@D) && \
	  case "$$line" in \
	  source\ *) \
	    $(BIN)/pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: --dest $(@D) $${line#source } && \
	    tar -xzf $(@D)/*.tar.gz -C $(@D) --strip-components 1 && rm $(@D)/*.tar.gz ;; \
	  *) \
	    $(PYTHON) -m venv $(@D) && \
	    $(@D)/bin/pip install --quiet --disable-pip-version-check $$line ;; \
	  esac && echo "$$line" >$@; \
	fi
	@touch $@

demo: install  ## convert a small genuine LLaVA-1.5 checkpoint into demo/ and load the result
	rm -rf demo
	$(BIN)/llava-remap apply rules/llava-v1.5.yaml --source $(TINY)/llava-v1.5/released/sharded \
	  --source vision_tower=$(TINY)/clip-vit-tiny-patch14-28 --output demo
	$(BIN)/python tools/load.py demo

chromium:  ## Debian's Chromium, in which pages of reports are tested; without it those tests are skipped, and say so
	@{ command -v chromium-headless-shell || command -v chromium || command -v google-chrome; } >/dev/null || { \
	  root="$$([ "$$(id -u)" = 0 ] || echo 'sudo -n')"; \
	  $$root apt-get -qq update && $$root apt-get -qq install --no-install-recommends --yes chromium-headless-shell; \
	} || echo 'make chromium: there is no Chromium, and apt-get installs none: tests of pages in a browser are skipped.' >&2

test: install chromium  ## the tests, in as many processes as there are cores (WORKERS=2)
	LLAVA_REMAP_VERSIONS=/dev/null $(BIN)/python -m pytest -rfEs -n $(WORKERS) -m 'not long and not compat and not programs'

test-versions: install versions  ## the tests that ask other versions of transformers
	$(BIN)/python -m pytest -n $(WORKERS) -m 'compat and not long'

test-programs: install  ## the tests that ask programs; those of one that is not installed are skipped
	$(BIN)/python -m pytest -rfEs -m 'programs and not long'

test-fast: install  ## the tests that need neither torch nor transformers, in less than a minute
	$(BIN)/python -m pytest -n $(WORKERS) --without-torch -m 'not torch and not long' $(FAST)

check: install  ## style (ruff) and types (mypy, strict)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install  ## the documentation as a site in build/site; broken links are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

report-assets: install  ## build the charting library of reports anew, from npm (tools/report/package-lock.json)
	$(BIN)/python -m tools.report.build

reference: install  ## write the pages that are made from the code, and the outputs of commands in all pages
	$(BIN)/python -m tools.docs.reference
	$(BIN)/python -m tools.docs.play

compat: install versions  ## ask every version of transformers about each family; writes the table in docs/versions.md
	$(BIN)/python -m tools.compat_table

text-models: install versions  ## every language model of transformers inside a LLaVA; writes the table in docs/text-models.md
	$(BIN)/python -m tools.text_models_table

conversions: install  ## every conversion of the installed transformers as rules, beside its own engine; writes the table in docs/rules/import.md
	TQDM_DISABLE=1 $(BIN)/python -m tools.conversions_table

fuzz: install  ## hostile files, random jobs, merges, kills, signals and full disks for longer (FUZZ_EXAMPLES=5000; an hour); 14 GB written under a memory limit
	$(BIN)/python -m pytest tests/hostile tests/end_to_end/test_whole_jobs.py tests/end_to_end/test_killed.py tests/execute/test_merge.py \
	  --hypothesis-profile=fuzz -m 'long or not long'

bench: install  ## time and memory beside cp and the classic way (SIZE=1GB, or 7b: the full size; ROUNDS=3; FORMS=safetensors,bin)
	$(BIN)/python tools/bench/engine.py
	$(BIN)/python -m tools.bench.infer
	$(BIN)/python -m tools.bench.bench --size $(SIZE) --rounds $(ROUNDS) --forms $(FORMS) --json build/bench-$(SIZE).json
