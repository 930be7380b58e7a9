# Three bases, each of which can be given (`docker build --build-arg BASE=...`); pin them by digest where you build for production.
# BASE compiles and gives its Node.js: 24, with npm. RUST_BASE has cargo, rustc and a linker. RUNTIME_BASE only runs: the C and
# C++ libraries of the same distribution, certificates, no shell, no package manager.
#
# For several platforms: docker buildx build --platform linux/amd64,linux/arm64 . Every stage runs on the platform that it
# is for, so builders of both kinds spare you the emulation.
ARG BASE=node:24-bookworm-slim
ARG RUST_BASE=rust:1-slim-bookworm
ARG RUNTIME_BASE=gcr.io/distroless/cc-debian12:nonroot

FROM ${RUST_BASE} AS compiled
WORKDIR /build
COPY scripts/native.sh ./scripts/native.sh
COPY native ./native
# The native half of the relay; without it (NATIVE=no) Postern relays in TypeScript.
ARG NATIVE=yes
RUN mkdir -p out/native \
 && if [ "$NATIVE" = yes ]; then sh scripts/native.sh && mv native/postern-native.*.node out/native/; fi
# What becomes Node.js once the process is made safe; linked statically, so that no variable of the loader reaches it.
RUN rustc --edition 2024 -C opt-level=s -C panic=abort -C strip=symbols -C target-feature=+crt-static \
      -o out/postern native/launcher/launcher.rs

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
# What is in the image: packages, crates, and what Node.js itself is made of.
COPY scripts/sbom.ts ./scripts/sbom.ts
COPY --from=compiled /build/native/Cargo.lock ./native/Cargo.lock
RUN npm sbom --omit=dev --package-lock-only --sbom-format=cyclonedx > npm.json \
 && node scripts/sbom.ts npm.json native/Cargo.lock > sbom.cdx.json
# May be executed, but not read by the user that does: the kernel then leaves no core file, and lets no process of that
# user trace this one or read its memory and environment (PR_SET_DUMPABLE in prctl(2)).
RUN cp "$(command -v node)" node && chmod 0711 node

FROM ${RUNTIME_BASE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Postern" \
      org.opencontainers.image.description="Logs applications in to databases and APIs with credentials fetched from Vault and the like at that moment" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# The same of glibc's malloc as in bin/postern: what it would keep without need is 3 MiB.
ENV PATH=/usr/local/bin:/usr/bin:/bin \
    MALLOC_ARENA_MAX=1 MALLOC_TRIM_THRESHOLD_=131072
# Owned by root: the program cannot change itself. It writes nothing, so the root file system may be read-only.
COPY --from=build --chown=0:0 /build/node /usr/local/bin/node
COPY --from=compiled --chown=0:0 /build/out/postern /usr/local/bin/postern
COPY --from=compiled --chown=0:0 /build/out/native /app/native
COPY --from=build --chown=0:0 /build/package.json /build/sbom.cdx.json /app/
COPY --from=build --chown=0:0 /build/dist /app/dist
WORKDIR /app
# A number, because Kubernetes cannot tell whether a name is root (runAsNonRoot).
USER 65532:65532
STOPSIGNAL SIGTERM
# No HEALTHCHECK: it would start a second Node.js every few seconds; whoever runs the image asks /livez and /readyz instead.
# It becomes Node.js, which is process 1 then: no shell in between that would keep signals to itself.
ENTRYPOINT ["/usr/local/bin/postern"]
CMD ["run"]
