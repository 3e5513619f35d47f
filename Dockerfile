# syntax=docker/dockerfile:1
# The server as an image: docker build --target cpu -t c2v-engine:cpu .
#                         docker build --target cuda -t c2v-engine:cuda .
# What follows the image's name is c2v serve's: docker run -p 8080:8080 c2v-engine:cpu /models/my-model
# A stage builds an environment against its torch; the image takes that and leaves the compilers.

ARG TORCH=2.13.0
ARG PYTHON=3.12
# Of the same major release as torch's; its toolkit compiles the extension.
ARG CUDA=13.0.2


FROM python:${PYTHON}-slim-bookworm AS cpu-build
ARG TORCH
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/c2v
ENV PATH=/opt/c2v/bin:$PATH
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --index-url https://download.pytorch.org/whl/cpu "torch==${TORCH}"
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install "setuptools>=77" wheel
WORKDIR /src
COPY pyproject.toml setup.py README.md LICENSE ./
COPY csrc csrc
COPY kernels kernels
COPY c2v_engine c2v_engine
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --no-build-isolation ".[serve,otel]"
# An install without the compiled extension goes on; an image without it is a mistake.
WORKDIR /
RUN c2v doctor \
    && python -c "from c2v_engine.kernels.dual_token_pool import extension_status as status; assert status().available, status()"


FROM python:${PYTHON}-slim-bookworm AS cpu
RUN useradd --uid 10001 --create-home --home-dir /cache --shell /usr/sbin/nologin c2v \
    && mkdir /models
COPY --from=cpu-build /opt/c2v /opt/c2v
ENV PATH=/opt/c2v/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/cache/huggingface
USER 10001
WORKDIR /cache
# Checkpoints of your own are mounted on the one; what is downloaded is kept on the other.
VOLUME ["/models", "/cache"]
EXPOSE 8080
STOPSIGNAL SIGTERM
# Healthy: warmed up, and a text was really embedded.
HEALTHCHECK --interval=30s --timeout=10s --start-period=300s --start-interval=2s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8080/health', timeout=8)"]
ENTRYPOINT ["c2v", "serve", "--host", "0.0.0.0", "--port", "8080"]


FROM nvidia/cuda:${CUDA}-devel-ubuntu24.04 AS cuda-build
ARG TORCH
# The first three digits of CUDA's release name PyTorch's index: cu130.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cu130
# Empty: 8.0, 9.0 and 10.0, as setup.py says. One of your GPUs alone builds faster.
ARG TORCH_CUDA_ARCH_LIST
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3.12-dev python3.12-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3.12 -m venv /opt/c2v
ENV PATH=/opt/c2v/bin:$PATH
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --index-url "${TORCH_INDEX}" "torch==${TORCH}"
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install "setuptools>=77" wheel ninja
WORKDIR /src
COPY pyproject.toml setup.py README.md LICENSE ./
COPY csrc csrc
COPY kernels kernels
COPY c2v_engine c2v_engine
RUN --mount=type=cache,target=/root/.cache/pip \
    if [ -z "${TORCH_CUDA_ARCH_LIST}" ]; then unset TORCH_CUDA_ARCH_LIST; fi; \
    pip install --no-build-isolation ".[serve,otel,gpu]"
WORKDIR /
RUN c2v doctor \
    && python -c "from c2v_engine.kernels.dual_token_pool import extension_status as status; assert status().available, status()"


FROM nvidia/cuda:${CUDA}-base-ubuntu24.04 AS cuda
# Triton compiles a launcher for each kernel when it first runs: hence a C compiler and headers.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev python3.12-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home --home-dir /cache --shell /usr/sbin/nologin c2v \
    && mkdir /models
COPY --from=cuda-build /opt/c2v /opt/c2v
ENV PATH=/opt/c2v/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/cache/huggingface \
    TRITON_CACHE_DIR=/cache/triton \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001
WORKDIR /cache
VOLUME ["/models", "/cache"]
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=300s --start-interval=2s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8080/health', timeout=8)"]
ENTRYPOINT ["c2v", "serve", "--host", "0.0.0.0", "--port", "8080"]
