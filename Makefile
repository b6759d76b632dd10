# make app: install and serve the page. make test: install and run every test.

.PHONY: app test clean

PYTHON ?= python3

.venv/.app: requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet -r requirements.txt
	touch .venv/.app

.venv/.test: requirements-test.txt .venv/.app
	.venv/bin/python -m pip install --quiet -r requirements-test.txt
	touch .venv/.test

app: .venv/.app
	.venv/bin/python -m fastviz.supervise

test: .venv/.test
	.venv/bin/python -m pytest -q --timeout 600 --durations 15 tests

clean:
	rm -rf .venv runs .pytest_cache
