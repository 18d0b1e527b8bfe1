# make demo   set everything up and run the main job on the embedded default, scikit-learn's digits
# make test   set everything up and run every check that CI runs
# make test-slow  only the tests that make test leaves out: torchvision's classifiers, a killed worker, several minutes
# make coverage  the tests of make test, and which lines they run
# make lint   only the checks that run no test; the documentation builds without a warning
# make audit  known vulnerabilities of the locked packages, asked of an online database
# make lock   bring requirements/test.txt in line with pyproject.toml, with hashes; UPGRADE=1: the newest versions
# make docs   the documentation, as build/site/index.html
# make clean  remove what was built, the environment included; outputs stay
#
# PYTHON=python3.12     the interpreter to use (default: the first of Python 3.11 to 3.13 that is found)
# VENV=path             an existing environment to use (default: .venv, created here)
# PYTEST_ARGS="-k word" arguments for pytest
# LOCKED=1              install the very files of requirements/test.txt, whose hashes are checked

PYTHON ?=
VENV ?= .venv
PYTEST_ARGS ?=
LOCKED ?=

BIN := $(VENV)/bin
LOCK := requirements/test.txt
# What was installed last: this folder, and [test] when the tools for tests came with it.
STAMP := $(VENV)/.autocompress
SUPPORTED = import sys; raise SystemExit(not (3, 11) <= sys.version_info[:2] < (3, 14))

.PHONY: demo test coverage test-slow lint audit lock docs venv install install-test clean

demo: install
	$(BIN)/autocompress search +experiment=digits
	@echo
	@echo "Every trial is in MLflow; to look at it:"
	@echo "  MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true \\"
	@echo "    $(BIN)/mlflow ui --host 127.0.0.1 --backend-store-uri sqlite:///$(CURDIR)/outputs/mlflow/mlflow.db"

test: lint
	$(BIN)/pytest -n auto -m "not slow and not benchmark and not timing" $(PYTEST_ARGS)
	$(BIN)/pytest -m timing $(PYTEST_ARGS) || [ $$? -eq 5 ] # 5: PYTEST_ARGS selects none of them

coverage: install-test
	$(BIN)/pytest -n auto -m "not benchmark and not timing and not slow" --cov --cov-report= $(PYTEST_ARGS)
	$(BIN)/coverage report --skip-covered --sort=cover

test-slow: install-test
	$(BIN)/pytest -m slow $(PYTEST_ARGS)

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive autocompress plugins benchmarks docs
	$(call site)

audit: venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet 'pip-audit>=2.9,<3'
	$(BIN)/pip-audit --requirement $(LOCK) --require-hashes --disable-pip --strict --progress-spinner off

lock: venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet 'uv>=0.9,<1'
	$(BIN)/uv pip compile pyproject.toml --quiet $(if $(UPGRADE),--upgrade) --extra test --universal --python-version 3.11 --generate-hashes \
		--no-annotate --no-emit-index-url --custom-compile-command 'make lock' --output-file $(LOCK)

docs: install-test
	$(call site)

venv: $(BIN)/pip

install: venv
	@$(call install,.,$(CURDIR))

install-test: venv
ifeq ($(LOCKED),)
	@$(call install,.[test],[test])
else
	@$(call install,.[test],[test] locked)
endif

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

# A notice about the next version of MkDocs is left out.
define site
NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
endef

# $(call install,REQUIREMENT,LINE): unless the stamp is younger than pyproject.toml, names this folder and has that line.
# Under LOCKED what the lock has is there before, so that the second command finds nothing to fetch.
define install
if [ pyproject.toml -nt $(STAMP) ] || ! grep -sqxF '$(CURDIR)' $(STAMP) || ! grep -sqxF '$(2)' $(STAMP); then \
	[ -e $(STAMP) ] || echo "PyTorch's default Linux wheel brings CUDA along, 3 GB to download; the README names a smaller one."; \
	rm -f $(STAMP) && \
	$(if $(LOCKED),$(BIN)/python -m pip install --disable-pip-version-check --require-hashes --requirement $(LOCK) &&) \
	$(BIN)/python -m pip install --disable-pip-version-check $(if $(LOCKED),--no-index --no-build-isolation) -e '$(1)' && printf '%s\n' '$(CURDIR)' '$(2)' > $(STAMP); \
fi
endef

$(BIN)/pip:
	@if [ -x $(BIN)/python ] && [ $(VENV) != .venv ]; then \
		echo "$(VENV) has no pip; add it with: $(BIN)/python -m ensurepip" >&2; exit 1; \
	fi; \
	found=; \
	for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
		if "$$python" -c '$(SUPPORTED)' 2>/dev/null; then \
			found=$${found:-$$python}; \
			if "$$python" -c 'import venv, ensurepip' 2>/dev/null; then exec "$$python" -m venv $(VENV); fi; \
		fi; \
	done; \
	if [ "$$found" ]; then \
		package=$$("$$found" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'); \
		echo "$$found cannot create environments; install its venv module: sudo apt-get install $$package" >&2; \
	else \
		echo "$(or $(PYTHON),python3) is not Python 3.11, 3.12 or 3.13; install one (sudo apt-get install python3.11 python3.11-venv)" \
			"or name it: make PYTHON=/path/to/python3.12" >&2; \
	fi; \
	exit 1
