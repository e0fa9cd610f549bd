# make install    the virtual environment .venv (made by every other target where it is missing)
# make reproduce  every result, from the notebooks:  make reproduce PRESET=quick [DATA=folder or archive with CROHME ink]
# make test       the tree is clean, exported and current, and all tests pass; all library notebooks are executed
# make check      only the first of the two: notebooks cleaned, modules and README as the notebooks say
# make lab        JupyterLab in nbs/
# make gpu-bundle everything the paper preset needs on a bare machine with a GPU:  make gpu-bundle DATA=... (see nbs/58_campaign.ipynb)
# make lock       requirements.lock anew from settings.ini
PRESET ?= quick
DATA ?=
PYTEST_ARGS ?= -n 2 --dist loadfile --durations=25
VENV := .venv
STAMP := $(VENV)/.installed
PY := $(VENV)/bin/python

.PHONY: install reproduce test check lab lock gpu-bundle
.DEFAULT_GOAL := install

install: $(STAMP)

$(PY):
	@found=; for python in python3.11 python3.12 python3.13 python3 python; do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then echo "Python 3.11 or newer is needed, and none was found on the PATH." >&2; exit 1; fi; \
	echo "making $(VENV) with $$found"; \
	$$found -m venv $(VENV) || { rm -rf $(VENV); echo "$$found could not make a virtual environment (on Debian: apt install python3-venv)." >&2; exit 1; }

$(STAMP): settings.ini setup.py requirements.lock .ci/install.py | $(PY)
	@$(PY) .ci/install.py
	@touch $@

reproduce: $(STAMP)
	@$(VENV)/bin/mask-match reproduce --preset $(PRESET) $(if $(DATA),--data "$(DATA)")

test: check
	@$(PY) -m pytest tests $(PYTEST_ARGS)

check: $(STAMP)
	@$(PY) tests/check.py

lab: $(STAMP)
	@cd nbs && ../$(VENV)/bin/jupyter lab

gpu-bundle: $(STAMP)
	@$(PY) -c "from mask_match.campaign import make_bundle; from mask_match.config import preset; print(make_bundle(preset('paper'), '$(DATA)' or None, 'build/gpu-bundle.tar.xz'))"

lock: $(STAMP)
	@touch setup.py  # uv keeps what it was told until setup.py changes; the facts stand in settings.ini
	@env -u PIP_FIND_LINKS -u UV_FIND_LINKS UV_CUSTOM_COMPILE_COMMAND="make lock" $(PY) -m uv pip compile -q --no-config --universal --python-version 3.11 \
	  --no-annotate --extra dev setup.py | grep -vE '^(nvidia-|cuda-|triton)' > $(VENV)/lock && mv $(VENV)/lock requirements.lock
