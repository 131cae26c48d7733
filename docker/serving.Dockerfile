# The HTTP service with the base dependencies only. From the root of the repository:
#   docker build -t digits-serving -f docker/serving.Dockerfile .
# Another package index: --build-arg PIP_INDEX_URL=… --build-arg UV_DEFAULT_INDEX=…
# The base image by its digest: --build-arg PYTHON_IMAGE=docker.io/library/python@sha256:…
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm
FROM ${PYTHON_IMAGE}

RUN useradd --uid 10001 --user-group --no-create-home digits && install -d -o digits -g digits /var/lib/digits
WORKDIR /app

# The packages in their own layer, without the installer.
COPY pyproject.toml uv.lock ./
ARG PIP_INDEX_URL=
ARG UV_DEFAULT_INDEX=
RUN --mount=type=cache,target=/root/.cache/uv \
    python -m venv /tmp/uv && /tmp/uv/bin/pip install --quiet --no-cache-dir uv==0.13.8 \
    && UV_PYTHON=/usr/local/bin/python UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy /tmp/uv/bin/uv sync \
        --quiet --locked --no-dev --no-default-groups --no-install-project --compile-bytecode \
    && rm -rf /tmp/uv

COPY digits ./digits
COPY models ./models
COPY services ./services

USER 10001:10001
# State is in the volume and the rest in /tmp, so that the root file system can be read-only.
ENV PATH=/app/.venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp \
    DIGITS_HOME=/var/lib/digits BENTOML_HOME=/tmp/bentoml BENTOML_DO_NOT_TRACK=True DO_NOT_TRACK=true ORT_DISABLE_TELEMETRY=1
VOLUME /var/lib/digits
EXPOSE 3000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import httpx; httpx.get('http://127.0.0.1:3000/livez', timeout=4).raise_for_status()"]
# Whatever the file of settings says: the port above, on all addresses of the container.
CMD ["env", "DIGITS_HOST=0.0.0.0", "DIGITS_SERVICE_PORT=3000", "python", "-m", "services"]
