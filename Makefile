# Two commands do all their own set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
STAMP := $(VENV)/.installed

.PHONY: demo test check install clean

demo: $(STAMP)
	scripts/demo

test: $(STAMP)
	scripts/test

check: $(STAMP)
	scripts/check

install: $(STAMP)

$(STAMP): python/pyproject.toml python/constraints.txt scripts/install
	PYTHON=$(PYTHON) VENV=$(VENV) scripts/install
	touch $(STAMP)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
