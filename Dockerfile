# Both bases can be given: `docker build --build-arg BASE=... --build-arg RUNTIME_BASE=... .`
# BASE compiles: it has Node.js 24 and npm. RUNTIME_BASE only runs: it needs `node` 24 on the PATH below and the C library,
# no shell and no package manager. Pin both by digest where you build for production.
ARG BASE=node:24-bookworm-slim
ARG RUNTIME_BASE=gcr.io/distroless/nodejs24-debian12:nonroot

FROM ${BASE} AS build
WORKDIR /build
# A registry of your own, where the public one cannot be reached.
ARG NPM_CONFIG_REGISTRY
COPY package.json package-lock.json ./
# Install scripts are for tools of the tests.
RUN npm ci --ignore-scripts --no-audit --no-fund
COPY scripts/build.ts ./scripts/
COPY src ./src
RUN node scripts/build.ts

FROM ${RUNTIME_BASE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Postern" \
      org.opencontainers.image.description="Logs applications in to PostgreSQL with a credential fetched from Vault at that moment" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# The same of glibc's malloc as in bin/postern: what it would keep without need is 3 MiB.
ENV NODE_ENV=production \
    MALLOC_ARENA_MAX=1 MALLOC_TRIM_THRESHOLD_=131072 \
    PATH=/nodejs/bin:/usr/local/bin:/usr/bin:/bin
# Owned by root: the program cannot change itself. It writes nothing, so the root file system may be read-only.
COPY --from=build /build/package.json /app/package.json
COPY --from=build /build/dist /app/dist
WORKDIR /app
# A number, because Kubernetes cannot tell whether a name is root (runAsNonRoot).
USER 65532:65532
STOPSIGNAL SIGTERM
# No HEALTHCHECK: it would start a second Node.js every few seconds; whoever runs the image asks /livez and /readyz instead.
# Node.js itself is process 1: no shell in between that would keep signals to itself.
ENTRYPOINT ["node", "--use-system-ca", "/app/dist/main.js"]
CMD ["run"]
