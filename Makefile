# make app: install and serve the page. make test: install and run every test.

.PHONY: app test clean

.venv/.done: requirements.txt requirements-test.txt
	python3 -m venv .venv
	.venv/bin/python -m pip install --quiet -r requirements-test.txt
	touch .venv/.done

app: .venv/.done
	.venv/bin/python app.py

test: .venv/.done
	.venv/bin/python -m pytest -q tests
