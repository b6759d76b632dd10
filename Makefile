# make app: install and serve the page, and start it again after a crash. make test: install and run every test.
# make torture: load, faults and bad input at full length. make mutations: whether the tests notice broken code.
# make gpu: for a machine with a GPU: the benchmark, then a larger embedded model is trained; each goes on where it stopped.
# make larger: ships that model in place of the other, renews all that is made from the weights, and trains its student.
# make audit: known vulnerabilities of the pinned packages. make lock: pin what is installed in requirements.lock.

.PHONY: app test torture mutations gpu larger audit lock clean

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

gpu: .venv/.app
	.venv/bin/python -m fastviz bench gpu --out assets/bench/gpu --minutes 8
	-.venv/bin/python -m fastviz fastest --lpips 0.15
	.venv/bin/python -m fastviz.stickers teacher --network large --batch 256 --fresh 32 --minutes 4 --decay 0
	.venv/bin/python -m fastviz.stickers teacher --network large --batch 256 --fresh 32 --minutes 8 --scenes 0.75 --decay 0.4
	.venv/bin/python -m fastviz.stickers progress --network large

larger:
	.venv/bin/python -m fastviz.stickers rebuild --network large
	for stage in distil student-decoder pairs warmup score; do .venv/bin/python -m fastviz.stickers $$stage --minutes 1.5 --batch 64 || exit; done
	.venv/bin/python -m fastviz.stickers export-student
	.venv/bin/python -m fastviz.stickers evaluate-student --count 128

audit: .venv/.test
	.venv/bin/python tests/audit.py

lock: .venv/.test
	.venv/bin/python tests/lock.py > requirements.lock

clean:
	rm -rf .venv runs .pytest_cache
