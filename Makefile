# Two commands: `make app` sets everything up and serves the page; `make test` sets everything up and checks it all.
PYTHON := .venv/bin/python
FETCH := $(PYTHON) -m app models fetch language-model

.PHONY: app test

app:
	@tools/setup.sh requirements.txt
	@$(FETCH) || echo "The app starts without its language model."
	$(PYTHON) app.py

test:
	@tools/setup.sh requirements-dev.txt
	@tools/browser.sh
	@$(FETCH) || echo "What needs the language model is not tested."
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --ignore tests/browser
	$(PYTHON) -m pytest tests/browser
