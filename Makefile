# make book    build the website            make serve   show it on this machine
# make test    run every test               make check   a sample of them        make help    the rest

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SITE := _build/html
PORT ?= 8000

# Threads that wait should sleep. Spinning, the default, makes small models many times slower as soon as
# another job takes a core; sleeping costs little on an idle machine.
export OMP_WAIT_POLICY := PASSIVE

.DEFAULT_GOAL := help
.PHONY: help setup book serve check test lint assignments student clean

help:
	@echo 'make book         set up and build the website (PYTHON=python3.12 chooses an interpreter)'
	@echo 'make serve        show it at http://127.0.0.1:$(PORT) (PORT=8080 chooses another)'
	@echo 'make test         set up, build the website and run every test (twenty minutes on two cores)'
	@echo 'make check        the core and a sample of everything else, for every save'
	@echo 'make setup        set up only'
	@echo 'make lint         check the style of code and notebooks'
	@echo 'make assignments  generate assignments/ from solutions/'
	@echo 'make student      dist/student.zip: site, assignments and library, without solutions'
	@echo 'make clean        remove what was built (the environment in $(VENV) stays)'

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo 'aecourse needs Python 3.10 to 3.13 and $(PYTHON) is another. Try: make PYTHON=python3.12 ...'; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -r requirements.txt
	$(BIN)/pip install --quiet --no-deps -e .
	@touch $@

setup: $(READY)

book: $(READY)
	$(BIN)/jupyter-book build book --config $(CURDIR)/_config.yml --toc $(CURDIR)/_toc.yml --path-output . \
	  --warningiserror --nitpick --keep-going --quiet
	@echo 'The site is built. Open $(SITE)/index.html, or run: make serve'

serve: book
	@echo 'Serving http://127.0.0.1:$(PORT) - stop with Ctrl-C'
	@$(BIN)/python -m http.server $(PORT) --bind 127.0.0.1 --directory $(SITE)

# Each process stays on one core. What shares a costly fixture stays in one process, and what takes longest starts
# first: tests/conftest.py. `check` is a sample of everything, site and sandbox included where they are there.
check test: export OMP_NUM_THREADS = 1
TESTS := $(BIN)/pytest --numprocesses auto --durations 20 --durations-min 1

check: $(READY)
	$(TESTS) --sample

# The site first: the browser tests look at it. The build has run all chapters; some are run again, and must give the
# same outputs to the last digit. These are quick and have the two kinds of numbers that a chapter has: formulas checked
# with random draws (errata), models trained (linear). Both state no times, which nobody gets twice.
AGAIN := errata linear
test: book
	$(TESTS) --nbval --nbval-sanitize-with tests/outputs.cfg \
	  tests $(AGAIN:%=_build/executed/%.ipynb)

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/nbstripout --verify --keep-id $$(git ls-files '*.ipynb')

assignments: $(READY)
	$(BIN)/python tools/release_assignments.py

student: book
	$(BIN)/python tools/student_kit.py $(SITE) dist/student.zip

clean:
	rm -rf _build dist
