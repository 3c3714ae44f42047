# Every target only calls `dca`. CUDA=12.1 ARCH=9.0 DRIVER=550.54 RECIPE=… PROFILE=… WITH=… MODEL=CONFIG SOURCE=…
# COMPANION="NAME=PATH NAME=PATH" PREBUILT=NAME|all PREBUILT_WHOLE=1 TOOLKIT=DIR JOBS=N COMPILER_CACHE=NAME CACHE=DIR
# BUNDLE=FILE OFFLINE=1 become its options.
VARIABLES := CUDA ARCH DRIVER RECIPE PROFILE WITH MODEL SOURCE COMPANION PREBUILT PREBUILT_WHOLE TOOLKIT JOBS \
             COMPILER_CACHE CACHE WHEEL LEVEL INDEX FOR ENGINE OUT BUNDLE OFFLINE RECORDING LONG
# Only what is on the command line counts: ARCH=x86_64 in the environment is about something else.
INHERITED := $(strip $(foreach name,$(VARIABLES) PYTHON,$(if $(filter environment,$(origin $(name))),$(if $($(name)),$(name)))))
$(foreach name,$(INHERITED),$(eval export INHERITED_$(name) := $$(value $(name))))
$(foreach name,$(VARIABLES),$(eval $(name) :=))
PYTHON := python3
UNKNOWN := $(strip $(foreach name,$(filter-out $(VARIABLES) PYTHON SHELL MAKE%,$(.VARIABLES)),$(if $(filter command%,$(origin $(name))),$(name))))
DCA := .venv/bin/dca
# The caller's Python packages must not replace those of .venv.
unexport PYTHONPATH PYTHONHOME PYTHONSTARTUP
# Tests are compiled once, not for each run.
unexport PYTHONDONTWRITEBYTECODE
unexport $(VARIABLES)
export $(foreach name,$(VARIABLES),$(if $($(name)),$(name)))

UNIT := not wheel and not network and not slow and not proof and not long and not whole and not gpu and not git

flag = $(if $(strip $($(1))),--$(2) "$$$(1)")
FLAGS = $(call flag,CUDA,cuda) $(call flag,ARCH,arch) $(call flag,DRIVER,driver) $(call flag,RECIPE,recipe) \
        $(call flag,PROFILE,profile) $(call flag,WITH,with) $(call flag,MODEL,model) $(call flag,SOURCE,source) $(call flag,COMPANION,companion) \
        $(call flag,PREBUILT,prebuilt) $(if $(strip $(PREBUILT_WHOLE)),--prebuilt-whole) $(call flag,TOOLKIT,toolkit) \
        $(call flag,JOBS,jobs) $(call flag,COMPILER_CACHE,compiler-cache) $(call flag,CACHE,cache-dir)

.DEFAULT_GOAL := help
.PHONY: help variables venv dev doctor env plan fetch wheel inspect smoke gpu-proof publish locks unit test prove bench coverage check docs format clean

help: venv ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

variables:
ifneq ($(UNKNOWN) $(INHERITED), )
	@$(PYTHON) -I scripts/make_variables.py --known $(VARIABLES) PYTHON --unknown $(UNKNOWN) --inherited $(INHERITED)
endif

venv: variables ## create .venv, the project's own environment
	@$(PYTHON) -I scripts/bootstrap.py

dev: variables
	@$(PYTHON) -I scripts/bootstrap.py --dev

doctor: venv ## check this machine, and show how to fix what is wrong; FOR=serve MODEL=DIR
	@$(DCA) doctor $(call flag,FOR,for) $(call flag,MODEL,model) $(call flag,RECIPE,recipe) $(call flag,CUDA,cuda) \
		$(call flag,CACHE,cache-dir)

env: venv ## make an environment to build in, with conda or else uv (ENGINE=conda|uv), or to run WHEEL=FILE in; OUT=DIR
	@$(DCA) env $(call flag,CUDA,cuda) $(call flag,RECIPE,recipe) $(call flag,ENGINE,engine) $(call flag,WHEEL,wheel) \
		$(call flag,OUT,out) $(call flag,CACHE,cache-dir)

plan: venv ## show what would be built and why; download nothing
	@$(DCA) plan $(FLAGS)

fetch: venv ## download, check and patch the sources; BUNDLE=FILE packs everything a build needs
	@$(DCA) fetch $(FLAGS) $(call flag,BUNDLE,bundle) $(if $(strip $(OFFLINE)),--offline)

wheel: venv ## build a wheel in dist/; BUNDLE=FILE OFFLINE=1 builds without a network
	@$(DCA) wheel $(FLAGS) $(call flag,BUNDLE,bundle) $(if $(strip $(OFFLINE)),--offline)

inspect: venv ## show what the wheels in dist/ contain
	@for wheel in dist/*.whl; do $(DCA) inspect "$$wheel" || exit; done

smoke: venv ## prove that the newest wheel in dist/ computes correct results; LEVEL=static|cpu|kernels|engine|gpu WHEEL=FILE
	@$(DCA) smoke $(if $(strip $(WHEEL)),"$$WHEEL") --quick $(call flag,LEVEL,level) $(call flag,SOURCE,source) \
		$(call flag,ARCH,arch) $(call flag,CACHE,cache-dir)

gpu-proof: variables ## on a machine with a GPU: replay RECORDING=DIR of `dca emulate --record`; OUT=DIR for the report
	@$(PYTHON) -I scripts/gpu_proof.py $(if $(strip $(RECORDING)),"$$RECORDING",recording) $(call flag,OUT,out)

publish: venv ## publish the wheels in dist/ to the index dist/index; WHEEL=FILE INDEX=DIR
	@$(DCA) publish $(if $(strip $(WHEEL)),"$$WHEEL",dist/*.whl) $(call flag,INDEX,index) $(call flag,CACHE,cache-dir)

locks: venv ## solve the locks of every recipe again, as of its lock date
	@.venv/bin/python scripts/locks.py

test: dev ## run the tests on the wheel of `make wheel`, which is built if it is missing; LONG=1 adds the long ones
	@$(if $(strip $(LONG)),DCA_TEST_LONG=1) .venv/bin/python -m pytest -n 3 --dist loadgroup --no-loadscope-reorder

prove: dev ## run every test at its full count, and build a small wheel of every recipe
	@DCA_PROOF_SCALE=1 .venv/bin/python -m pytest -m "proof or whole or not (gpu or git)"

bench: dev ## measure the figures of docs/benchmarks.md that take seconds
	@.venv/bin/python scripts/bench.py

unit: dev ## run the quick tests, which need neither a wheel nor a network
	@DCA_TEST_IN_MEMORY=1 .venv/bin/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder -m "$(UNIT)"

coverage: dev ## run the unit tests and report their branch coverage
	@.venv/bin/python -m pytest -n 2 --dist loadgroup -m "$(UNIT)" -q --cov --cov-report=term

check: dev ## run ruff, mypy, import rules, spelling and shell checks; validate data files and schemas
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy && .venv/bin/lint-imports --no-logo \
		&& .venv/bin/codespell && .venv/bin/shellcheck .ci/run && .venv/bin/python scripts/check_data.py \
		&& .venv/bin/validate-pyproject pyproject.toml \
		&& .venv/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml \
		&& .venv/bin/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml \
		&& .venv/bin/check-jsonschema --builtin-schema vendor.github-issue-forms \
			$(filter-out %/config.yml,$(wildcard .github/ISSUE_TEMPLATE/*.yml))

docs: dev ## build the documentation as a website in .site
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict && echo .site/index.html

format: dev
	@.venv/bin/ruff check --fix . ; .venv/bin/ruff format .

clean: venv ## remove the wheels in dist/ and the caches of the checks; keep dist/index, .venv and the cache
	@find dist -mindepth 1 -maxdepth 1 ! -name index -exec rm -rf {} + 2>/dev/null || true
	rm -rf .site .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
