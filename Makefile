# Everything this makes lies in .venv/ and build/. Each target may be run again at any time.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: setup jars dev peers bench-peers peer-torch protos lint test test-cluster demo demo-iot demo-feed bench sbom audit clean lock help

# Override on the command line: make setup PYTHON=/opt/python3.11/bin/python3
PYTHON ?= python3.11
EXTRA ?=
DEMO_ARGS ?=
BENCH_ARGS ?=
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# A made file per finished step of `setup`; it is older than a lock that has changed.
DONE := $(VENV)/.done
# The installer has an environment of its own: with pip and uv .venv would be 60 MB larger.
UV := build/tools/bin/uv
UV_DONE := build/tools/.done
INSTALL = $(UV) pip install --quiet --python $(BIN)/python --no-deps
EXTRA_STEP := $(if $(EXTRA),$(DONE)/extra-$(EXTRA))

setup: $(DONE)/project $(EXTRA_STEP) ## Make .venv with everything at its locked version

$(UV_DONE): conf/requirements-uv.lock | check-tools
	@$(PYTHON) -m venv build/tools
	@build/tools/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes \
		-r conf/requirements-uv.lock
	@touch $@

$(DONE)/venv: | $(UV_DONE)
	@$(UV) venv --quiet --clear --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" $(VENV)
	@mkdir -p $(DONE) && touch $@

# The order of the two files matters: see conf/requirements-serving.in.
# The packages' own test suites and C headers are 50 MB that nothing here reads.
# flink-python's jar: without it in lib/ a cluster runs only one thread-mode job per TaskManager.
$(DONE)/packages: $(DONE)/venv conf/requirements.lock conf/requirements-serving.lock
	@echo "installing the locked packages"
	@$(INSTALL) --require-hashes -r conf/requirements.lock
	@$(INSTALL) --require-hashes --reinstall -r conf/requirements-serving.lock
	@cd $(VENV)/lib/python3.11/site-packages && \
		rm -rf pandas/tests scipy/*/tests pyarrow/tests pyarrow/include
	@cd $(VENV)/lib/python3.11/site-packages/pyflink && \
		{ ln -f opt/flink-python-*.jar lib/ 2>/dev/null || cp opt/flink-python-*.jar lib/; }
	@touch $@

$(DONE)/project: $(DONE)/packages pyproject.toml
	@$(INSTALL) --editable .
	@touch $@
	@echo "ready: $(BIN)/streamscore --help"

# TensorFlow brings the files of tensorflow-protobuf itself.
$(DONE)/extra-tensorflow: $(DONE)/packages conf/requirements-tensorflow.lock
	@echo "installing TensorFlow"
	@$(UV) pip uninstall --quiet --python $(BIN)/python tensorflow-protobuf
	@$(INSTALL) --require-hashes --reinstall -r conf/requirements-tensorflow.lock
	@touch $@

$(DONE)/extra-onnx: $(DONE)/packages conf/requirements-onnx.lock
	@echo "installing ONNX Runtime"
	@$(INSTALL) --require-hashes -r conf/requirements-onnx.lock
	@touch $@

$(DONE)/extra-forest: $(DONE)/packages conf/requirements-forest.lock
	@echo "installing scikit-learn, ONNX and ONNX Runtime"
	@$(INSTALL) --require-hashes -r conf/requirements-forest.lock
	@touch $@

$(DONE)/extra-tracing: $(DONE)/packages conf/requirements-tracing.lock
	@echo "installing OpenTelemetry"
	@$(INSTALL) --require-hashes -r conf/requirements-tracing.lock
	@touch $@

$(DONE)/extra-s3: $(DONE)/packages conf/requirements-s3.lock
	@echo "installing s3fs"
	@$(INSTALL) --require-hashes -r conf/requirements-s3.lock
	@touch $@

$(DONE)/extra-sns: $(DONE)/packages conf/requirements-sns.lock
	@echo "installing boto3"
	@$(INSTALL) --require-hashes -r conf/requirements-sns.lock
	@touch $@

$(DONE)/extra-mlflow: $(DONE)/packages conf/requirements-mlflow.lock
	@echo "installing MLflow's client"
	@$(INSTALL) --require-hashes -r conf/requirements-mlflow.lock
	@touch $@

$(DONE)/extra-torch: $(DONE)/packages conf/requirements-torch.lock
	@echo "installing PyTorch: 4 GB"
	@$(INSTALL) --require-hashes -r conf/requirements-torch.lock
	@touch $@

# Without pyproject.toml, whose override keeps Redis's client from coming along with apache-beam.
$(DONE)/extra-redis: $(DONE)/packages conf/requirements-redis.lock
	@echo "installing Redis's client"
	@$(INSTALL) --no-config --require-hashes -r conf/requirements-redis.lock
	@touch $@

$(DONE)/extra-postgres: $(DONE)/packages conf/requirements-postgres.lock
	@echo "installing psycopg"
	@$(INSTALL) --require-hashes -r conf/requirements-postgres.lock
	@touch $@

$(DONE)/extra-feast: $(DONE)/packages conf/requirements-feast.lock
	@echo "installing Feast"
	@$(INSTALL) --require-hashes -r conf/requirements-feast.lock
	@touch $@

$(DONE)/extra-%: ; @echo "no extra named $*: there are feast, forest, mlflow, onnx, postgres," \
	"redis, s3, sns, tensorflow, torch, tracing" >&2; exit 2

$(DONE)/dev: $(DONE)/project $(DONE)/extra-redis $(DONE)/extra-postgres conf/requirements-dev.lock
	@$(INSTALL) --require-hashes -r conf/requirements-dev.lock
	@touch $@

check-tools: ; @PYTHON="$(PYTHON)" sh conf/check-tools.sh
.PHONY: check-tools

jars: setup
	@$(BIN)/python -m jobs.jars

dev: setup $(DONE)/dev

lint: dev ## Check style, format and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy --strict jobs udfs model_server

# Strangers' clients and servers, in environments of their own below build/peers/.
# NCCL is left out, and TensorFlow is the build for CPUs: nothing here has a GPU.
peers: $(DONE)/peer-mlflow $(DONE)/peer-mlserver $(DONE)/peer-tensorflow

# Those of bench/features.py alone.
bench-peers: $(DONE)/peer-quix $(DONE)/peer-bytewax $(DONE)/peer-history

# Apart, for its 4 GB: what the extra installs, in build/peers/torch.
peer-torch: $(DONE)/peer-torch

define INSTALL_PEER
@echo "installing the peers: $(@F:peer-%=%)"
@$(UV) venv --quiet --clear --python $(BIN)/python build/peers/$(@F:peer-%=%)
@$(UV) pip install --quiet --python build/peers/$(@F:peer-%=%)/bin/python --no-deps \
	--require-hashes -r $(lastword $^)
@touch $@
endef

$(DONE)/peer-torch: $(DONE)/venv conf/requirements-torch.lock
	$(INSTALL_PEER)

$(DONE)/peer-%: $(DONE)/venv conf/requirements-peer-%.lock
	$(INSTALL_PEER)

test: lint jars peers ## Run lint, then all the tests but those of minutes
	@$(BIN)/python -m pytest -m "not long" --durations=25 --durations-min=10 $(PYTEST_ARGS) \
		tests/unit tests/contract tests/peers tests/minicluster tests/cluster

test-cluster: jars ## Kill and change jobs on a standalone cluster with a real Kafka
	@$(BIN)/python -m pytest $(PYTEST_ARGS) tests/cluster tests/contract/test_outages.py \
		tests/minicluster/test_exactness.py

demo: jars ## Score card transactions end to end on this machine (DEMO_ARGS="--help")
	@$(BIN)/streamscore demo $(DEMO_ARGS)

demo-iot: jars $(DONE)/extra-forest ## Find anomalies of 10,000 machines on this machine (DEMO_ARGS="--help")
	@$(BIN)/streamscore demo-iot $(DEMO_ARGS)

demo-feed: jars ## Rank a feed end to end on this machine (DEMO_ARGS="--help")
	@$(BIN)/streamscore demo-feed $(DEMO_ARGS)

bench: jars ## Measure throughput and latency (BENCH_ARGS="--help")
	@$(BIN)/python -m bench.throughput $(BENCH_ARGS)
	@$(BIN)/python -m bench.latency $(BENCH_ARGS)

clean: ## Stop the local stack and remove .venv/ and build/
	@if [ -x $(BIN)/streamscore ]; then $(BIN)/streamscore stack down; fi
	@rm -rf $(VENV) build *.egg-info

# No index is named in a lock, and no path of the machine that made it. Redis's client is locked
# without pyproject.toml, whose override keeps it from coming along with apache-beam.
COMPILE = $(UV) pip compile --quiet --generate-hashes --python-version 3.11 \
	--python-platform linux --custom-compile-command "make lock"
# What PyTorch's own libraries are not linked to.
NO_GPU := cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cuda-cccl nvidia-cusolver nvidia-nvtx triton
lock: setup
	@$(COMPILE) pyproject.toml -o conf/requirements.lock
	@$(COMPILE) --group dev -c conf/requirements.lock -o conf/requirements-dev.lock
	@$(COMPILE) conf/requirements-tensorflow.in -c conf/requirements.lock \
		-o conf/requirements-tensorflow.lock
	@$(COMPILE) conf/requirements-onnx.in -c conf/requirements.lock -o conf/requirements-onnx.lock
	@$(COMPILE) conf/requirements-forest.in -c conf/requirements-dev.lock \
		-o conf/requirements-forest.lock
	@$(COMPILE) conf/requirements-tracing.in -c conf/requirements.lock \
		-o conf/requirements-tracing.lock
	@$(COMPILE) conf/requirements-s3.in -c conf/requirements.lock -o conf/requirements-s3.lock
	@$(COMPILE) conf/requirements-sns.in -c conf/requirements.lock -o conf/requirements-sns.lock
	@$(COMPILE) conf/requirements-mlflow.in -c conf/requirements-dev.lock \
		-o conf/requirements-mlflow.lock
	@$(COMPILE) conf/requirements-torch.in -c conf/requirements.lock $(NO_GPU:%=--no-emit-package %) \
		-o conf/requirements-torch.lock
	@$(COMPILE) conf/requirements-postgres.in -c conf/requirements.lock \
		-o conf/requirements-postgres.lock
	@$(COMPILE) conf/requirements-feast.in -c conf/requirements.lock -o conf/requirements-feast.lock
	@$(COMPILE) --no-config conf/requirements-redis.in -c conf/requirements.lock \
		-o conf/requirements-redis.lock
	@$(COMPILE) conf/requirements-server.in -c conf/requirements.lock \
		-c conf/requirements-onnx.lock -o conf/requirements-server.lock
	@for peer in mlflow mlserver tensorflow; do \
		$(COMPILE) conf/requirements-peer-$$peer.in -o conf/requirements-peer-$$peer.lock \
			--no-emit-package nvidia-nccl-cu12 --no-emit-package tensorflow \
			|| exit 1; done
	@for peer in quix history; do \
		$(COMPILE) conf/requirements-peer-$$peer.in -o conf/requirements-peer-$$peer.lock \
			|| exit 1; done
# Bytewax's wheels want a newer glibc than uv's "linux" has.
	@$(patsubst linux,x86_64-manylinux_2_31,$(COMPILE)) conf/requirements-peer-bytewax.in \
		-o conf/requirements-peer-bytewax.lock
	@$(COMPILE) conf/requirements-uv.in -o conf/requirements-uv.lock
	@$(COMPILE) conf/requirements-audit.in -o conf/requirements-audit.lock
	@$(COMPILE) --no-deps conf/requirements-serving.in -o conf/requirements-serving.lock
	@$(COMPILE) conf/requirements-synccfd.in -o conf/requirements-synccfd.lock

# What is installed, as CycloneDX: Python's packages, Flink's extra jars, the local broker's jars.
CYCLONEDX_MAVEN := org.cyclonedx:cyclonedx-maven-plugin:2.9.1:makeBom
sbom: jars $(DONE)/audit ## List all that is installed, as CycloneDX, in build/sbom
	@mkdir -p build/sbom
	@build/audit/bin/cyclonedx-py environment --output-reproducible --of JSON \
		-o build/sbom/python.json $(BIN)/python 2>/dev/null
	@for pom in pom kafka-pom; do \
		mvn -q -B -f conf/$$pom.xml $(CYCLONEDX_MAVEN) -DoutputFormat=json -DoutputName=$$pom \
			-DoutputDirectory=$(CURDIR)/build/sbom || exit 1; done
	@echo "written: build/sbom"

audit: $(DONE)/audit ## Look the locked packages up among known vulnerabilities
	@for lock in conf/requirements*.lock; do echo "$$lock"; \
		build/audit/bin/pip-audit -r $$lock --disable-pip --require-hashes --strict || exit 1; done

$(DONE)/audit: $(UV_DONE) conf/requirements-audit.lock | $(DONE)/venv
	@$(UV) venv --quiet --clear --python $(BIN)/python build/audit
	@$(UV) pip install --quiet --python build/audit/bin/python --no-deps --require-hashes \
		-r conf/requirements-audit.lock
	@touch $@

# The generator must not be newer than the protobuf that is locked.
protos: $(UV_DONE)
	@$(UV) run --quiet --no-project --python 3.11 --with grpcio-tools==1.62.3 --with 'setuptools<81' \
		python -m grpc_tools.protoc -I. --python_out=. model_server/oip/open_inference.proto

help: ## Say what each target does
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
