# The base is pinned to an exact version. Its digest is not written here, because no registry could be asked when this
# was written. To pin it: docker buildx imagetools inspect python:3.11.14-slim-bookworm, then
# docker build --build-arg BASE=python:3.11.14-slim-bookworm@sha256:DIGEST -t coreflux-mcp .
ARG BASE=python:3.11.14-slim-bookworm

FROM ${BASE} AS dependencies
COPY requirements.txt /
RUN python3 -m venv --without-pip /opt/venv \
    && python3 -m pip --python /opt/venv/bin/python install --no-cache-dir -r /requirements.txt

FROM dependencies AS source
COPY *.py /app/
COPY doctor /app/doctor
COPY lot /app/lot
COPY onboarding /app/onboarding
COPY simulator /app/simulator
COPY tools /app/tools
# What is compiled now need not be at each start, as nothing can be written then. A checkout may be private: a+rX.
RUN chmod -R a+rX,go-w /app \
    && /opt/venv/bin/python -m compileall -q --invalidation-mode unchecked-hash /app

FROM ${BASE}
LABEL org.opencontainers.image.title="coreflux-mcp" \
    org.opencontainers.image.description="An MCP server that lets an AI assistant work safely with one MQTT broker"
RUN groupadd --gid 10001 mcpserver \
    && useradd --uid 10001 --gid 10001 --home-dir /nonexistent --no-create-home --shell /usr/sbin/nologin mcpserver \
    && install -d -m 0700 -o mcpserver -g mcpserver /var/lib/coreflux-mcp
COPY --from=dependencies /opt/venv /opt/venv
COPY --from=source /app /app
# State (backups, approvals) is below XDG_STATE_HOME: the only folder that is written to.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    XDG_STATE_HOME=/var/lib
WORKDIR /app
# mcpserver, as a number: Kubernetes can tell from it that it is not root.
USER 10001:10001
EXPOSE 8765
# Asks /readyz, which is false while the broker is away. Over stdio nobody can be asked: run with --no-healthcheck.
HEALTHCHECK --interval=30s --timeout=6s --start-period=20s --retries=3 CMD ["python", "/app/health.py"]
ENTRYPOINT ["python", "/app/server.py"]
