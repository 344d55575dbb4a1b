# `make demo` and `make test` set themselves up on a machine that has Python, pip, make and git.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin

.PHONY: demo test check docs clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --constraint constraints.txt --editable ".[demo,dev]"
	touch $@

demo: $(VENV)/.installed
	@$(RUN)/portllm demo $(if $(KEEP),--keep)

test: check
	$(RUN)/pytest

check: $(VENV)/.installed
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/lint-imports

docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(RUN)/python -m mkdocs build --strict
	@echo "The site is in build/site. To read it: $(RUN)/python -m http.server --directory build/site"

clean:
	rm -rf $(VENV) build *.egg-info
