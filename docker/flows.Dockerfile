# Flows and training, and the servers beside them: MLflow, Prefect, the Evidently UI. From the root of the repository:
#   docker build -t digits-flows -f docker/flows.Dockerfile .
# Another package index: --build-arg PIP_INDEX_URL=… --build-arg UV_DEFAULT_INDEX=…
# The base image by its digest: --build-arg PYTHON_IMAGE=docker.io/library/python@sha256:…
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm
FROM ${PYTHON_IMAGE}

RUN useradd --uid 10001 --user-group --no-create-home digits \
    && install -d -o digits -g digits /var/lib/digits /var/lib/mlflow /var/lib/prefect
WORKDIR /app

# The packages in a layer of their own, without what installs them.
COPY pyproject.toml uv.lock ./
ARG PIP_INDEX_URL=
ARG UV_DEFAULT_INDEX=
RUN --mount=type=cache,target=/root/.cache/uv \
    python -m venv /tmp/uv && /tmp/uv/bin/pip install --quiet --no-cache-dir uv==0.13.8 \
    && UV_PYTHON=/usr/local/bin/python UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy /tmp/uv/bin/uv sync \
        --quiet --locked --no-dev --group pools --no-install-project --compile-bytecode \
    && rm -rf /tmp/uv

COPY docker/when-up.sh /usr/local/bin/when-up
COPY docker/mlflow-auth.ini ./mlflow-auth.ini
COPY digits ./digits
COPY models ./models
COPY services ./services
COPY monitoring ./monitoring
COPY flows ./flows
COPY ops ./ops

USER 10001:10001
# What is kept is in volumes and the rest in /tmp, so that the root file system can be read-only.
ENV PATH=/app/.venv/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp \
    DIGITS_HOME=/var/lib/digits DO_NOT_TRACK=true ORT_DISABLE_TELEMETRY=1
CMD ["python", "-m", "flows.deployments"]
