# Two commands: `make app` sets everything up and serves the page; `make test` sets everything up and checks it all.
PYTHON := .venv/bin/python

.PHONY: app test

app:
	@tools/setup.sh requirements.txt
	$(PYTHON) app.py

test:
	@tools/setup.sh requirements-dev.txt
	@tools/browser.sh
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) -m pytest
