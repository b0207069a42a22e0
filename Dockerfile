# The server in a container. `compose.yaml` runs it; docs/operations.md says what to know about it.
#
# Three layers that change at different speeds, the slowest and biggest first: Claude Code (some
# 360 MB), the packages of the lock, this project. A change of the code sends the last alone.
#
# Base images are named by tag: their digests change with every security fix of Debian. To pin one,
# build with --build-arg PYTHON=3.13-slim-trixie@sha256:...

ARG PYTHON=3.13-slim-trixie

# -- the packages of the lock, and Claude Code, which one of them brings -------------------------
FROM python:${PYTHON} AS packages

RUN python3 -m venv --without-pip /opt/venv
COPY requirements.lock /src/
# Downloads are kept outside of the image. Bytecode is made once, and trusted at run time, so that
# no date of a file matters.
# hadolint ignore=DL3042
RUN --mount=type=cache,target=/var/cache/pip \
    pip --python /opt/venv/bin/python install --cache-dir /var/cache/pip --no-compile \
        --disable-pip-version-check --require-hashes --requirement /src/requirements.lock \
    && /opt/venv/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/venv
# Claude Code leaves its package for a layer of its own; the server finds it on the PATH. This
# project stands beside the packages, and is theirs to import.
RUN site="$(/opt/venv/bin/python -c 'import site; print(site.getsitepackages()[0])')" \
    && mv "$site/claude_agent_sdk/_bundled/claude" /opt/claude \
    && echo /opt/session-supervisor > "$site/session-supervisor.pth"

# -- this project --------------------------------------------------------------------------------
FROM packages AS project

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY supervisor supervisor
COPY http http
RUN /opt/venv/bin/python -m hatchling build --target wheel --directory /tmp/wheel \
    && pip --python /opt/venv/bin/python install --no-cache-dir --no-compile \
        --disable-pip-version-check --no-index --no-deps --target /opt/session-supervisor /tmp/wheel/*.whl \
    && /opt/venv/bin/python -m compileall -q --invalidation-mode unchecked-hash \
        /opt/session-supervisor
COPY --chmod=0755 deploy/healthcheck.py /opt/session-supervisor/bin/healthcheck

# -- what runs -----------------------------------------------------------------------------------
FROM python:${PYTHON}

# What sessions find beside a shell; bubblewrap and socat are what Claude Code's sandbox is made of.
ARG PACKAGES="bubblewrap git socat"

# Versions are Debian's of the day: a stable release takes the old ones away with every fix.
# hadolint ignore=DL3008,SC2086
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini ${PACKAGES} \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin \
        --home-dir /var/lib/session-supervisor session-supervisor \
    && install --directory --owner=10001 --group=10001 --mode=0700 \
        /var/lib/session-supervisor /workspace

COPY --link --from=packages /opt/claude /usr/local/bin/claude
COPY --link --from=packages /opt/venv /opt/venv
COPY --link --from=project /opt/session-supervisor /opt/session-supervisor

LABEL org.opencontainers.image.title="Claude session supervisor" \
      org.opencontainers.image.description="Claude agent sessions as supervised actors, with a REST and Server-Sent Events API" \
      org.opencontainers.image.licenses="MIT"

# The root file system may be read-only: what changes is below HOME, /workspace and /tmp.
ENV HOME=/var/lib/session-supervisor \
    LANG=C.UTF-8 \
    PATH=/opt/session-supervisor/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    SESSION_SUPERVISOR_HOST=0.0.0.0 \
    SESSION_SUPERVISOR_PORT=3000 \
    SESSION_SUPERVISOR_KEYS=/var/lib/session-supervisor/keys.toml \
    SESSION_SUPERVISOR_MAKE_KEY=true \
    SESSION_SUPERVISOR_STATE_DIR=/var/lib/session-supervisor \
    SESSION_SUPERVISOR_WORKSPACE=/workspace

USER 10001:10001
WORKDIR /workspace
EXPOSE 3000
STOPSIGNAL SIGTERM

HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["healthcheck"]

# tini reaps what sessions leave behind, and hands SIGTERM to the server alone: it ends its
# sessions in order.
ENTRYPOINT ["tini", "--"]
CMD ["session-supervisor", "serve"]
