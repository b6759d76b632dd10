# make app: install and serve the page, and start it again after a crash. make test: install and run every test.
# make torture: load, faults and bad input at full length. make mutations: whether the tests notice broken code.
# make gpu: for a machine with a GPU: the benchmark, a larger embedded model, and the fastest way on this one; each goes on where it stopped.
# make student: ships that model in place of the other and trains its student. make larger: the same, then renews all that is made from the
# weights (`rebuild`): hours, and no GPU is needed; until then rows that were fitted to the old weights are refused.
# A machine that is lent for ten minutes runs their parts one by one: gpu-bench as often as cells are left, teacher-windows, teacher-scenes,
# student-distil, student-score, student-figures. `keep` writes the teacher to assets/stickers/onward after each sitting, and any machine goes
# on from there; the parts of the student need what the ones before left in training/. Teacher and student are to be trained within 20
# minutes: 14 of training, 6 for eight starts with compiling, the store of painted scenes, and export.
# make audit: known vulnerabilities of the pinned packages. make lock: pin what is installed in requirements.lock.

.PHONY: app test torture mutations gpu gpu-bench gpu-fastest teacher-windows teacher-scenes student student-distil student-score student-figures \
	larger audit lock clean

.NOTPARALLEL:

PYTHON ?= python3
STICKERS = .venv/bin/python -m fastviz.stickers

.venv/.app: requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet -r requirements.txt
	touch .venv/.app

.venv/.test: requirements-test.txt .venv/.app
	.venv/bin/python -m pip install --quiet -r requirements-test.txt
	touch .venv/.test

.venv/.bench: requirements-bench.txt .venv/.app
	.venv/bin/python -m pip install --quiet -r requirements-bench.txt
	touch .venv/.bench

app: .venv/.app
	.venv/bin/python -m fastviz.supervise

test: .venv/.test
	.venv/bin/python -m pytest -q -n 2 --dist loadfile --timeout 600 --durations 25 tests

torture: .venv/.test
	.venv/bin/python -m pytest -q -n 2 --dist loadfile --timeout 900 --durations 12 -m "" tests/test_load.py tests/test_faults.py tests/test_reliability.py

mutations: .venv/.test
	.venv/bin/python tests/mutations.py --drawn 30 --out assets/bench/mutations.json

gpu: gpu-bench teacher-windows teacher-scenes gpu-fastest

gpu-bench: .venv/.bench
	.venv/bin/python -m fastviz bench gpu --out assets/bench/gpu --minutes 6

teacher-windows: .venv/.app
	$(STICKERS) teacher --network large --batch 256 --fresh 32 --minutes 3 --decay 0
	$(STICKERS) keep --network large

teacher-scenes: .venv/.app
	$(STICKERS) teacher --network large --batch 256 --fresh 32 --minutes 5.5 --scenes 0.75 --decay 0.4
	$(STICKERS) keep --network large
	$(STICKERS) progress --network large

student: student-distil student-score student-figures

student-distil: .venv/.app
	$(STICKERS) export --network large
	for stage in distil student-decoder pairs; do $(STICKERS) $$stage --minutes 1 --batch 64 || exit; done

student-score: .venv/.app
	$(STICKERS) warmup --minutes 0.5 --batch 64
	$(STICKERS) reader --minutes 0.5 --batch 128
	$(STICKERS) refine --minutes 1 --batch 64
	$(STICKERS) score --minutes 0.5 --batch 64
	$(STICKERS) export-student

student-figures: .venv/.app
	$(STICKERS) evaluate-student --count 128

gpu-fastest: .venv/.app
	-.venv/bin/python -m fastviz fastest --lpips 0.15

larger: student
	$(STICKERS) rebuild --network large

audit: .venv/.test
	.venv/bin/python tests/audit.py

lock: .venv/.test
	.venv/bin/python tests/lock.py > requirements.lock

clean:
	rm -rf .venv runs .pytest_cache
