PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/installed
QUICKSTART := runs/quickstart

.PHONY: test-cpus install lint docs demo fit test test-slow test-long
install: $(READY)

# installed again only when what is to be installed changes. `remoco` is what remoco-video was called: it goes first, for uninstalled
# later it would take the new one's command along
$(READY): setup.cfg pyproject.toml constraints.txt entry/__main__.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip uninstall -qq --yes --disable-pip-version-check remoco
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[all]' -c constraints.txt
	touch $@

# in the same environment, for mypy reads the types of what is installed
$(VENV)/lint: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[lint]' -c constraints.txt
	touch $@

lint: $(VENV)/lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

$(VENV)/docs: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]' -c constraints.txt
	touch $@

# a link that leads nowhere, or a page that the menu lacks, is an error; the variable keeps an advertisement out of the output
docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "The site is in site/: open site/index.html, or, for the search too, serve it with python3 -m http.server -d site."

# resumes where an earlier `make fit` stopped; delete runs/quickstart to start over
fit: $(READY)
	$(BIN)/python -m lightning fit --config configs/quickstart.yaml --ckpt_path last
	@echo "The strips in $(QUICKSTART)/samples come in pairs: one first frame, two motions. The numbers are in $(QUICKSTART)/metrics.json."

# one stroke on a held-out first frame, by the model that the package ships
demo: $(READY)
	$(BIN)/remoco demo

# a process for each core, with one thread each; who is done takes tests from who is not
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n logical --dist worksteal

# a server of S3, Weights & Biases, MLflow and a browser's driver, for the long tests alone
$(VENV)/slow: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[slow]' -c constraints.txt
	touch $@

test-slow: $(VENV)/slow
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow -n logical --dist worksteal --maxfail 10 --durations 30

# what CI has no time for: trainings to their end
test-long: $(VENV)/slow
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m long

# as other CPUs and numbers of threads compute: seven times the suite, about an hour; PYTEST=tests/lightning_modules for a part
test-cpus: $(READY)
	$(BIN)/python -m tests.support.cpus $(PYTEST)
