# `make book` builds the site into build/html, `make test` checks everything; each works from a bare clone.
# A notebook is executed again only where it, ebmlib or the pinned packages changed.

PYTHON ?= python3
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help book test serve links executed address clean

# One thread: the networks are small, and bit-for-bit results need it. Silent bars: stray stderr fails the build.
export OMP_NUM_THREADS := 1
export TQDM_DISABLE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

bin := .venv/bin
PORT ?= 8000
watched := book notebooks ebmlib tests/benchmarks _config.yml _toc.yml pyproject.toml requirements.txt
notebooks := $(wildcard notebooks/*.ipynb)
copies := $(notebooks:notebooks/%=build/executed/%)
code := $(wildcard ebmlib/*.py ebmlib/*.js ebmlib/data/*.* ebmlib/data/results/* tests/benchmarks/*.py)
pages := $(shell find book -type f -not -name '*.pyc' 2>/dev/null) _config.yml _toc.yml pyproject.toml

# The version that pyproject.toml asks for is 3.$(minor). A Python says its own, and fails where it is older.
minor := $(shell sed -n 's/^requires-python = ">=3\.\([0-9]*\)"/\1/p' pyproject.toml)
version := import sys; print("Python %d.%d" % sys.version_info[:2]); sys.exit(sys.version_info < (3, $(minor)))

# owner/name as pyproject.toml has it, and as asked for; where GitHub publishes the pages of such a repository
slug := $(shell sed -n 's|^Repository = "https://github.com/\(.*\)"|\1|p' pyproject.toml)
new = $(patsubst https://github.com/%,%,$(TO:.git=))
pages_of = $(firstword $(subst /, ,$1)).github.io/$(lastword $(subst /, ,$1))

help:  ## Show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

book: build/html/.done  ## Execute what changed and build the site into build/html
	@echo "The book: build/html/index.html"

test: book  ## Lint, types, static checks of the site, unit tests and claims
	$(bin)/ruff check -q .
	$(bin)/ruff format -q --check .
	$(bin)/mypy --no-error-summary
	$(bin)/python tests/check_site.py build/html
	$(bin)/pytest -n 2 --dist worksteal --durations=20 --durations-min=10  # a few tests are long

# Waits for a file that is newer than the last build's start; a build that fails says so and waits for the next change.
serve: book  ## Serve the site on localhost, PORT 8000, and rebuild it on every change
	@$(bin)/python -m http.server -b 127.0.0.1 -d build/html $(PORT) > build/serve.log 2>&1 & \
	trap "kill $$! 2> /dev/null || true" EXIT; sleep 1; kill -0 $$! 2> /dev/null || { cat build/serve.log >&2; exit 1; }; \
	echo "http://localhost:$(PORT)/  (rebuilds on every change; Ctrl-C ends it)"; \
	while touch build/.started; do \
	  $(MAKE) --no-print-directory book || echo "The build failed; waiting for a change." >&2; \
	  until test -n "$$(find $(watched) -type f -not -name "*.pyc" -newer build/.started -print -quit)"; do sleep 1; done; \
	done

links: book  ## Check the links to other hosts (needs a network)
	PYTHONPATH=book/_ext $(bin)/sphinx-build -q -b linkcheck -d build/doctrees-links -D nb_execution_mode=off build/src build/links

# A Python that is too old is refused before anything is made, and a .venv that could not be made is taken away.
# A .venv that is there is used; where its Python is gone it is made anew.
.venv/.done: requirements.txt pyproject.toml
	@if $(bin)/python -c "" 2> /dev/null; then python=$(bin)/python; advice="rm -rf .venv"; \
	else python="$(PYTHON)"; advice="make PYTHON=/path/to/python3"; fi; \
	has=$$("$$python" -c '$(version)' 2> /dev/null) || { \
	  echo "$$python is $${has:-no Python}, and the book needs 3.$(minor) or newer: $$advice" >&2; exit 1; }; \
	if test "$$python" = $(bin)/python; then test -x $(bin)/pip || $(bin)/python -m ensurepip --default-pip > /dev/null; \
	else "$$python" -m venv --clear .venv || { rm -rf .venv; exit 1; }; fi
	$(bin)/pip install -qq -r requirements.txt
	$(bin)/pip install -qq --no-deps -e .
	touch $@

# Executed aside and moved when it passed: a failing notebook is never up to date.
build/executed/%.ipynb: notebooks/%.ipynb $(code) .venv/.done
	@mkdir -p build/running build/executed
	@cp $< build/running/
	@TIMEFORMAT="executed $<: %R s, %U s CPU"; time \
	  $(bin)/pytest --nbmake --nbmake-timeout=300 --overwrite build/running/$*.ipynb > build/running/$*.log \
	  || { cat build/running/$*.log; exit 1; }
	@mv build/running/$*.ipynb $@

executed: $(copies)

# Two at a time, all of them even if one fails. The site is then built afresh, so that no warning hides behind a cache.
build/html/.done: $(notebooks) $(code) $(pages) .venv/.done
	@$(MAKE) --no-print-directory -k -j2 executed
	rm -rf build/src build/html build/doctrees
	mkdir -p build/src/notebooks
	cp -r book _config.yml _toc.yml build/src/
	cp $(copies) build/src/notebooks/
	$(bin)/jupyter-book config sphinx build/src > build/config.log
	PYTHONPATH=book/_ext $(bin)/sphinx-build -q -b html -d build/doctrees -D nb_execution_mode=off -W --keep-going -n build/src build/html
	touch $@

address:  ## For a fork: make address TO=https://github.com/you/your-fork
	@test -n "$(TO)" || { echo "make address TO=https://github.com/you/your-fork" >&2; exit 2; }
	@grep -rlIF --exclude-dir=.git --exclude-dir=.venv --exclude-dir=build -e $(slug) -e $(call pages_of,$(slug)) . \
	  | xargs perl -pi -e 's|\Q$(slug)\E|$(new)|g; s|\Q$(call pages_of,$(slug))\E|$(call pages_of,$(new))|g'

clean:  ## Remove what was built; .venv stays
	rm -rf build
