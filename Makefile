# Thin: every target calls `dca`. CUDA=12.1 ARCH=9.0 RECIPE=… PROFILE=… WITH=… MODEL=CONFIG SOURCE=…
# COMPANION="NAME=PATH NAME=PATH" PREBUILT=NAME|all JOBS=N CACHE=DIR BUNDLE=FILE OFFLINE=1 are passed on.
PYTHON ?= python3
DCA := .venv/bin/dca
# Packages of the caller's must not stand in for those of .venv.
unexport PYTHONPATH PYTHONHOME PYTHONSTARTUP
# Tests are compiled once, not for each run.
unexport PYTHONDONTWRITEBYTECODE
export CUDA ARCH RECIPE PROFILE WITH MODEL SOURCE COMPANION PREBUILT JOBS CACHE WHEEL LEVEL INDEX FOR ENGINE OUT BUNDLE

UNIT := not wheel and not network and not slow and not proof and not whole and not gpu and not git

flag = $(if $(strip $($(1))),--$(2) "$$$(1)")
FLAGS = $(call flag,CUDA,cuda) $(call flag,ARCH,arch) $(call flag,RECIPE,recipe) $(call flag,PROFILE,profile) \
        $(call flag,WITH,with) $(call flag,MODEL,model) $(call flag,SOURCE,source) $(call flag,COMPANION,companion) \
        $(call flag,PREBUILT,prebuilt) $(call flag,JOBS,jobs) $(call flag,CACHE,cache-dir)

.DEFAULT_GOAL := help
.PHONY: help venv dev doctor env plan fetch wheel inspect smoke publish locks unit test prove bench coverage check format clean

help: venv ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

venv: ## the project's own environment, .venv
	@$(PYTHON) -I scripts/bootstrap.py

dev:
	@$(PYTHON) -I scripts/bootstrap.py --dev

doctor: venv ## what is right on this machine, what is wrong, and what mends it; FOR=serve MODEL=DIR
	@$(DCA) doctor $(call flag,FOR,for) $(call flag,MODEL,model) $(call flag,RECIPE,recipe) $(call flag,CUDA,cuda) \
		$(call flag,CACHE,cache-dir)

env: venv ## an environment to build in, by conda or uv (ENGINE=conda insists), or with WHEEL=FILE to run it; OUT=DIR
	@$(DCA) env $(call flag,CUDA,cuda) $(call flag,RECIPE,recipe) $(call flag,ENGINE,engine) $(call flag,WHEEL,wheel) \
		$(call flag,OUT,out) $(call flag,CACHE,cache-dir)

plan: venv ## what would be built and why; nothing is fetched
	@$(DCA) plan $(FLAGS)

fetch: venv ## the sources, pinned and patched; BUNDLE=FILE packs all that a build takes
	@$(DCA) fetch $(FLAGS) $(call flag,BUNDLE,bundle) $(if $(strip $(OFFLINE)),--offline)

wheel: venv ## a wheel in dist/; BUNDLE=FILE OFFLINE=1 builds without a network
	@$(DCA) wheel $(FLAGS) $(call flag,BUNDLE,bundle) $(if $(strip $(OFFLINE)),--offline)

inspect: venv ## what is in the wheels of dist/
	@for wheel in dist/*.whl; do $(DCA) inspect "$$wheel" || exit; done

smoke: venv ## proof that the newest wheel of dist/ computes what it should; LEVEL=static|cpu|gpu WHEEL=FILE
	@$(DCA) smoke $(if $(strip $(WHEEL)),"$$WHEEL") --quick $(call flag,LEVEL,level) $(call flag,SOURCE,source) \
		$(call flag,ARCH,arch) $(call flag,CACHE,cache-dir)

publish: venv ## the wheels of dist/ to an index in dist/index; WHEEL=FILE INDEX=DIR
	@$(DCA) publish $(if $(strip $(WHEEL)),"$$WHEEL",dist/*.whl) $(call flag,INDEX,index) $(call flag,CACHE,cache-dir)

locks: venv ## solve the locks of every recipe again, as of its date
	@.venv/bin/python scripts/locks.py

test: dev ## every test; needs the wheel of `make wheel`, and makes it if it is missing
	@.venv/bin/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder

prove: dev ## every test at its full count, and a small wheel of every recipe
	@DCA_PROOF_SCALE=1 .venv/bin/python -m pytest -m "proof or whole or not (gpu or git)"

bench: dev ## the figures of docs/benchmarks.md
	@.venv/bin/python scripts/bench.py

unit: dev ## the tests that need neither a wheel nor a network
	@.venv/bin/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder -m "$(UNIT)"

coverage: dev ## the unit tests with their coverage of branches
	@.venv/bin/python -m pytest -n 2 --dist loadgroup -m "$(UNIT)" -q --cov --cov-report=term

check: dev ## ruff, mypy, import rules, spelling, shell scripts
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy && .venv/bin/lint-imports --no-logo \
		&& .venv/bin/codespell && .venv/bin/shellcheck .ci/run

format: dev
	@.venv/bin/ruff check --fix . ; .venv/bin/ruff format .

clean: venv ## removes the wheels of dist and what checkers left; the index in dist, .venv and the cache stay
	@find dist -mindepth 1 -maxdepth 1 ! -name index -exec rm -rf {} + 2>/dev/null || true
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
