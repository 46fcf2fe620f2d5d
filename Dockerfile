# One image for nodes, Ray's head, Jobs and tests: docs/kubernetes.md says how it is built and pinned.
# It is written for every builder, BuildKit or not, and asks nothing of the network but the package index and, for the compiler, the
# distribution's mirror.
ARG BASE_IMAGE=python:3.11.13-slim-bookworm

FROM ${BASE_IMAGE} AS build

# pip's own variables; certificates (PEM) that an index of your own is signed by. This stage, and what is given to it, is left behind.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
ARG PIP_CA_CERTIFICATES=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1 PIP_ROOT_USER_ACTION=ignore
RUN if [ -n "${PIP_CA_CERTIFICATES}" ]; then \
        printf '%s\n' "${PIP_CA_CERTIFICATES}" > /build-ca.crt && printf '[global]\ncert = /build-ca.crt\n' > /etc/pip.conf; \
    fi

COPY image/requirements.lock /build/image/
RUN python3 -m venv /opt/actorgrid \
    && /opt/actorgrid/bin/python -m pip install --quiet --require-hashes --only-binary :all: -r /build/image/requirements.lock

# COMPILE=0 leaves the hot modules as Python. Where the base has a compiler, it is taken.
ARG COMPILE=1
ARG COMPILER_PACKAGES="gcc libc6-dev"
RUN if [ "${COMPILE}" = 1 ] && ! command -v gcc > /dev/null; then \
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends ${COMPILER_PACKAGES}; \
    fi

COPY image/build.lock /build/image/
RUN python3 -m venv /build/tools && /build/tools/bin/python -m pip install --quiet --require-hashes -r /build/image/build.lock

COPY pyproject.toml hatch_build.py README.md LICENSE /build/
COPY actorgrid /build/actorgrid
COPY placement /build/placement
RUN cd /build \
    && PATH=/build/tools/bin:$PATH ACTORGRID_COMPILE=${COMPILE} \
        /build/tools/bin/python -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir /build/wheels . \
    && /opt/actorgrid/bin/python -m pip install --quiet --no-index --no-deps /build/wheels/*.whl

# What a grid never runs: Ray's libraries for learning and data, its Java and its dashboard's pages, the asynchronous twin of the
# Kubernetes client, tests, headers, pip itself.
# What is left gets its bytecode here, since a read-only root file system would have every process make it anew.
RUN cd /opt/actorgrid/lib/python3*/site-packages \
    && rm -rf ray/jars ray/rllib ray/llm ray/tune ray/train ray/data ray/dashboard/client ray/cpp \
        kubernetes/aio pip pip-*.dist-info setuptools setuptools-*.dist-info pkg_resources _distutils_hack distutils-precedence.pth \
    && find . -depth -type d \( -name tests -o -name test -o -name __pycache__ \) -exec rm -rf {} + \
    && find . -type f \( -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.pxi' -o -name '*.h' -o -name '*.c' \) -delete \
    && rm -f /opt/actorgrid/bin/pip* \
    && /opt/actorgrid/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash . \
    && /opt/actorgrid/bin/actorgrid --version


FROM ${BASE_IMAGE}

LABEL org.opencontainers.image.title="ActorGrid" \
      org.opencontainers.image.licenses="Apache-2.0"

# Numbers, so that the kubelet can see that it is not root.
RUN groupadd --gid 10001 actorgrid \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin actorgrid \
    && mkdir --mode 0750 /data && chown 10001:10001 /data && mkdir /app

COPY --from=build /opt/actorgrid /opt/actorgrid

# The home is the one place that can be written when the root file system is read-only.
ENV PATH=/opt/actorgrid/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    RAY_USAGE_STATS_ENABLED=0

USER 10001:10001
WORKDIR /app
EXPOSE 7400
CMD ["actorgrid", "--help"]
