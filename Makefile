# make app: install and serve the page, and start it again after a crash. make test: install and run every test.
# make torture: load, faults and bad input at full length. make mutations: whether the tests notice broken code.
# make audit: known vulnerabilities of the pinned packages. make lock: pin what is installed in requirements.lock.

.PHONY: app test torture mutations audit lock clean

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
	.venv/bin/python -m pytest -q -n 2 --dist loadfile --timeout 600 --durations 25 tests

torture: .venv/.test
	.venv/bin/python -m pytest -q -n 2 --dist loadfile --timeout 900 --durations 12 -m "" tests/test_load.py tests/test_faults.py tests/test_reliability.py

mutations: .venv/.test
	.venv/bin/python tests/mutations.py --drawn 30 --out assets/bench/mutations.json

audit: .venv/.test
	.venv/bin/python tests/audit.py

lock: .venv/.test
	.venv/bin/python tests/lock.py > requirements.lock

clean:
	rm -rf .venv runs .pytest_cache
