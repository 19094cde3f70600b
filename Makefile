# The study's commands. `make help` explains them; README.md says what they answer.

PYTHON    ?= python3
VENV      ?= .venv
PROFILE   := demo
RUN       :=
SET       :=
DATA      :=
A         :=
B         :=
JOBS      := 2
NOTEBOOKS := notebooks
IMAGES    := yes

override RUN := $(or $(strip $(value RUN)),$(value PROFILE))
ROOT      := $(or $(NAFLD_ROOT),.)
STAMPS    := $(ROOT)/artifacts/$(RUN)/settings
REPORTS   := $(ROOT)/reports/$(RUN)
STAGES    := 01_data_analysis 02_preprocessing 03_ldm_training 04_sampling \
             05_quality_metrics 06_classification_sweep 07_shap 08_turing_test
LOOKS     := $(wildcard nafld_utils/report/*.py nafld_utils/report/templates/* params/protocol.yaml)

# Values reach the command through the environment, so that blanks and quotes in them survive the shell; make itself
# would export them too, and run what a folder of the name $(shell ...) says.
unexport SET DATA A B IMAGES PROFILE RUN JOBS BENCH LAB TESTS FAULTS
export NAFLD_PROFILE := $(value PROFILE)
export NAFLD_RUN     := $(RUN)
export NAFLD_SET     := $(value SET)
export NAFLD_DATA    := $(value DATA)
export NAFLD_JOBS    := $(value JOBS)
export NAFLD_A       := $(value A)
export NAFLD_IMAGES  := $(value IMAGES)
export NAFLD_B       := $(value B)
NAFLD   = $(VENV)/bin/nafld
OPTIONS = --profile "$$NAFLD_PROFILE" --run "$$NAFLD_RUN" --set "$$NAFLD_SET" --data "$$NAFLD_DATA" --notebooks $(NOTEBOOKS)

ifneq ($(words $(RUN)) $(findstring /,$(RUN)) $(words $(ROOT)),1  1)
$(error RUN and NAFLD_ROOT must not hold blanks, and RUN no slash: RUN is "$(RUN)", NAFLD_ROOT is "$(NAFLD_ROOT)")
endif

BENCH     :=
LAB       :=

.PHONY: all plan dry-run report-zip export predict compare test test-faults bench lint lab doctor clean help settings $(STAGES)
.DEFAULT_GOAL := help
.SUFFIXES:
.SECONDARY:

## Study ---------------------------------------------------------------------------------------------------------

all: settings            ## run every stage that is stale and write the reports
	@$(MAKE) -s -j"$$NAFLD_JOBS" $(STAGES:%=$(REPORTS)/%.html) $(REPORTS)/index.html
	@echo "$(RUN): up to date, open $(REPORTS)/index.html"

$(STAGES): settings      ## run one stage and what it needs, e.g. make 05_quality_metrics
	@$(MAKE) -s -j"$$NAFLD_JOBS" $(call pages,$@)
	@echo "$(RUN): up to date, open $(REPORTS)/$@.html"

plan: $(VENV)/.ready     ## say which stages would run, why, and which finished trainings would be made again
	@$(NAFLD) resolve --dry-run $(OPTIONS)

dry-run: $(VENV)/.ready  ## say how many classifiers would be trained, what is done, and how long it takes here
	@$(NAFLD) dry-run $(OPTIONS)

report-zip: $(VENV)/.ready ## pack the report pages of RUN into one archive to mail; IMAGES=no: without images of patients
	@$(NAFLD) report-zip --images "$$NAFLD_IMAGES" -- "$$NAFLD_RUN"

export: $(VENV)/.ready   ## write RUN's released images and classifiers, with cards, into a folder to give away
	@$(NAFLD) export -- "$$NAFLD_RUN"

predict: $(VENV)/.ready  ## score the images at DATA with the classifiers of RUN; with labels, how good the scores are
	@$(NAFLD) predict --data "$$NAFLD_DATA" -- "$$NAFLD_RUN"

compare: $(VENV)/.ready  ## hold two finished runs against each other: make compare A=run B=run
	@$(NAFLD) compare -- "$$NAFLD_A" "$$NAFLD_B"

# Validates the settings before any kernel starts and moves the time of a stage's stamp when the stage must run again.
# The graph below runs in a second make, which then sees those times.
settings: $(VENV)/.ready
	@$(NAFLD) resolve $(OPTIONS)

# What each stage reads beside its settings and its notebook.
READS_02_preprocessing        := 01_data_analysis
READS_03_ldm_training         := 02_preprocessing
READS_04_sampling             := 03_ldm_training
READS_05_quality_metrics      := 04_sampling
READS_06_classification_sweep := 05_quality_metrics
READS_07_shap                 := 06_classification_sweep
READS_08_turing_test          := 05_quality_metrics

# In the order of STAGES, so that with one job a page follows its notebook; with two it is written beside the next stage.
pages = $(foreach stage,$(READS_$1),$(call pages,$(stage))) $(REPORTS)/$1.html

$(STAGES:%=$(REPORTS)/%.ipynb): $(REPORTS)/%.ipynb: $(NOTEBOOKS)/%.ipynb $(STAMPS)/%.json
	@$(NAFLD) execute $* $(OPTIONS)

$(foreach stage,$(STAGES),$(eval $$(REPORTS)/$(stage).ipynb: $$(READS_$(stage):%=$$(REPORTS)/%.ipynb)))

$(STAGES:%=$(REPORTS)/%.html): $(REPORTS)/%.html: $(REPORTS)/%.ipynb $(LOOKS)
	@$(NAFLD) render $* $(OPTIONS)

$(REPORTS)/index.html: $(STAGES:%=$(REPORTS)/%.ipynb) $(LOOKS)
	@$(NAFLD) index $(OPTIONS)

$(STAMPS)/%.json: ;

## Work ----------------------------------------------------------------------------------------------------------

lab: $(VENV)/.ready      ## open a run's notebooks in JupyterLab, e.g. PROFILE=cpu LAB="--no-browser"
	@exec $(NAFLD) lab $(OPTIONS) -- $(LAB)

# A file of tests stays in one process, which makes its modules' fixtures once; long files come first.
SIDE_BY_SIDE := -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: $(VENV)/.ready     ## run the tests
	$(VENV)/bin/python -m pytest -m "not faults" $(SIDE_BY_SIDE) $(TESTS)

test-faults: $(VENV)/.ready ## kill processes in the middle of their work and compare what they end with
	$(VENV)/bin/python -m pytest -m faults $(SIDE_BY_SIDE) $(FAULTS)

bench: $(VENV)/.ready    ## measure what the stages cost here, into one page, e.g. BENCH="quality sweep"
	@$(VENV)/bin/python tests/benchmarks/bench.py $(BENCH)

lint: $(VENV)/.ready     ## check style, the direction of imports, and that notebooks hold no outputs
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports --no-logo --no-cache
	$(VENV)/bin/nbstripout --keep-id --verify $(wildcard notebooks/[0-9]*.ipynb)

doctor:                  ## check this machine and say how to mend what is missing
	@if [ -e $(VENV)/.ready ]; then $(VENV)/bin/python -m nafld_utils.doctor --data "$$NAFLD_DATA"; \
	else $(PYTHON) -m nafld_utils.doctor --data "$$NAFLD_DATA"; fi

# Only folders that a run of that name has made, which hold a manifest or a notebook's page; raw cohorts are never touched.
clean:                   ## remove everything that RUN has computed; data/ stays
	@case "$$NAFLD_RUN" in [!A-Za-z0-9]*|*[!A-Za-z0-9._-]*|bench|compare) \
	  echo "clean: RUN is not the name of a run: $$NAFLD_RUN" >&2; exit 2;; esac; \
	set -- "$(ROOT)/artifacts/$$NAFLD_RUN" "$(ROOT)/reports/$$NAFLD_RUN"; \
	for folder do \
	  if [ -d "$$folder" ] && [ -z "$$(find "$$folder" ! -type d \( -name run.json -o -name '0[1-9]_*' -o -name '.*' \) -print -quit)" ] \
	    && [ -n "$$(find "$$folder" ! -type d -print -quit)" ]; then \
	    echo "clean: $$folder holds nothing that a run has made; remove it by hand if it is not needed" >&2; exit 2; fi; done; \
	for folder do \
	  if [ -d "$$folder" ]; then echo "removing $$folder"; rm -rf -- "$$folder"; \
	  else echo "nothing at $$folder"; fi; done

help:                    ## show this
	@echo 'make <target> [PROFILE=demo] [RUN=name] [SET="a.b=c ..."] [DATA=cohort.mat or folder] [JOBS=2]'; echo
	@sed -n 's/^\([$$()A-Za-z_-]*\):[^#]*## \(.*\)/\1\t\2/p' $(firstword $(MAKEFILE_LIST)) \
	  | sed 's/^$$(STAGES)/<stage>/' | while IFS="$$(printf '\t')" read -r name text; do printf '  %-11s %s\n' "$$name" "$$text"; done
	@echo; echo '  profiles: smoke (the tests), demo (simulated, 6 min), cpu (real cohort, no GPU), paper (one GPU)'
	@echo '  stages:   $(STAGES)' | fold -s -w 100

## Set-up --------------------------------------------------------------------------------------------------------

# Once per change of the lock. A set-up that was cut short leaves .installing behind and starts from an empty folder. A
# second make waits for the first: an environment that is emptied under the installer's hands sends it to the user's Python.
$(VENV)/.ready: requirements.lock pyproject.toml
	@set -e; python=; for candidate in "$(PYTHON)" python3.12 python3.11; do \
	  if "$$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; \
	  then python="$$candidate"; break; fi; done; \
	if [ -z "$$python" ]; then \
	  echo "set-up: expected Python 3.11 or 3.12, found $$("$(PYTHON)" --version 2>&1 | head -n 1);" \
	       "install one of them or name it: make PYTHON=/path/to/python3.12" >&2; exit 2; fi; \
	"$$python" -m nafld_utils.doctor --before-set-up $(VENV); \
	exec 9>>$(VENV).lock; "$$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'; \
	if [ $(VENV)/.ready -nt requirements.lock ] && [ $(VENV)/.ready -nt pyproject.toml ]; then exit; fi; \
	rm -f $(VENV)/.ready; \
	if [ -e $(VENV)/.installing ] || ! $(VENV)/bin/python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; then \
	  "$$python" -m venv --clear $(VENV) || { \
	    echo "set-up: $$python cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2; exit 2; }; fi; \
	touch $(VENV)/.installing; \
	sed -n '/^uv==/,/# via/p' requirements.lock > $(VENV)/uv.txt; \
	$(VENV)/bin/python -m pip --disable-pip-version-check install --quiet --require-hashes -r $(VENV)/uv.txt; \
	$(VENV)/bin/uv pip sync --require-hashes --compile-bytecode --python $(VENV)/bin/python requirements.lock; \
	$(VENV)/bin/uv pip install --python $(VENV)/bin/python --quiet --no-deps --no-build-isolation -e .; \
	$(VENV)/bin/python -m ipykernel install --sys-prefix >/dev/null; \
	rm $(VENV)/.installing; touch $(VENV)/.ready
