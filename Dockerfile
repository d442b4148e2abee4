# twofold in a container, from the versions of constraints.txt.
#
#   docker build --target cpu  -t twofold .                                  any machine
#   docker build --target cuda -t twofold:cuda .                             NVIDIA GPUs, Ampere or newer
#   mkdir -p runs
#   docker run --rm --user "$(id -u)" -v "$PWD/runs:/data/runs" twofold demo         the report: runs/demo/report.html
#   docker run --rm --user "$(id -u)" -v "$PWD/runs:/data/runs" --gpus all twofold:cuda train rlv-qwen2.5-math-1.5b
#
# --build-arg TWOFOLD_TORCH_INDEX=<url> installs torch from this index, as for make: with an index of CPU builds the first
# image is some 5 GB smaller. The CUDA libraries come with torch's own packages, so no CUDA base image is needed.

ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
RUN pip install --no-cache-dir --constraint constraints.txt build hatchling
COPY src src
COPY configs configs
COPY examples examples
RUN python -m build --wheel --no-isolation --outdir /dist

FROM python:${PYTHON}-slim AS cpu
ARG TWOFOLD_TORCH_INDEX=
COPY constraints.txt /
RUN pip install --no-cache-dir --constraint /constraints.txt --no-deps \
    ${TWOFOLD_TORCH_INDEX:+--index-url "$TWOFOLD_TORCH_INDEX"} torch
COPY --from=build /dist /dist
RUN pip install --no-cache-dir --constraint /constraints.txt "$(ls /dist/*.whl)[serve]"
# Whoever owns the mounted folder may be the user, so any user may write here, and one without an entry in passwd has a name.
RUN mkdir -p /data/runs && chmod -R 777 /data
ENV HOME=/data USER=twofold
USER 1000
WORKDIR /data
ENTRYPOINT ["twofold"]

# Triton builds the launchers of its kernels with a C compiler.
FROM cpu AS cuda
USER 0
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
USER 1000
