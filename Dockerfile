# One image for each program: docker build --target outbox-relay . (or user-api, post-api, view-builder, console).
#
# The builder and the base share Debian 12's glibc. The base has that, certificate authorities and time zones, no shell and no package manager;
# its user is 65532. `--build-arg PROFILE=dist` builds slower for smaller programs. `--build-arg PROGRAMS_IMAGE=IMAGE` compiles nothing, and takes /programs
# of that image.
ARG RUST_IMAGE=rust:1.95.0-slim-bookworm
ARG BASE_IMAGE=gcr.io/distroless/cc-debian12:nonroot
ARG PROGRAMS_IMAGE=build

FROM ${RUST_IMAGE} AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ make perl \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
ARG PROFILE=release
# The images hold no debug information: none is made.
ENV CARGO_PROFILE_RELEASE_DEBUG=false
# The caches outlive the layer: after a change of the source only what depends on it is compiled again.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target,sharing=locked \
    set -eu; \
    cargo build --locked --profile "$PROFILE" -p user-api -p post-api -p outbox-relay -p view-builder -p pipeline-console --bins; \
    mkdir /programs; \
    for program in user-api post-api outbox-relay view-builder console; do \
        strip --strip-debug -o "/programs/$program" "target/$PROFILE/$program"; \
    done

FROM ${PROGRAMS_IMAGE} AS programs

# SIGTERM goes to the program itself, as process 1; it ends cleanly and has no children.
FROM ${BASE_IMAGE} AS user-api
LABEL org.opencontainers.image.title="user-api" org.opencontainers.image.licenses="Apache-2.0 OR MIT"
COPY --from=programs /programs/user-api /usr/local/bin/
USER 65532:65532
ENV LISTEN=0.0.0.0:8081
EXPOSE 8081
HEALTHCHECK --interval=2s --timeout=3s --start-period=30s --retries=4 CMD ["/usr/local/bin/user-api", "health"]
ENTRYPOINT ["/usr/local/bin/user-api"]

FROM ${BASE_IMAGE} AS post-api
LABEL org.opencontainers.image.title="post-api" org.opencontainers.image.licenses="Apache-2.0 OR MIT"
COPY --from=programs /programs/post-api /usr/local/bin/
USER 65532:65532
ENV LISTEN=0.0.0.0:8082
EXPOSE 8082
HEALTHCHECK --interval=2s --timeout=3s --start-period=30s --retries=4 CMD ["/usr/local/bin/post-api", "health"]
ENTRYPOINT ["/usr/local/bin/post-api"]

FROM ${BASE_IMAGE} AS outbox-relay
LABEL org.opencontainers.image.title="outbox-relay" org.opencontainers.image.licenses="Apache-2.0 OR MIT"
COPY --from=programs /programs/outbox-relay /usr/local/bin/
USER 65532:65532
ENV ADMIN_LISTEN=0.0.0.0:8083
EXPOSE 8083
HEALTHCHECK --interval=2s --timeout=3s --start-period=30s --retries=4 CMD ["/usr/local/bin/outbox-relay", "health"]
ENTRYPOINT ["/usr/local/bin/outbox-relay"]
CMD ["run"]

FROM ${BASE_IMAGE} AS view-builder
LABEL org.opencontainers.image.title="view-builder" org.opencontainers.image.licenses="Apache-2.0 OR MIT"
COPY --from=programs /programs/view-builder /usr/local/bin/
COPY sql/views /usr/share/view-builder/views
USER 65532:65532
ENV ADMIN_LISTEN=0.0.0.0:8084 VIEWS=/usr/share/view-builder/views
EXPOSE 8084
HEALTHCHECK --interval=2s --timeout=3s --start-period=30s --retries=4 CMD ["/usr/local/bin/view-builder", "health"]
ENTRYPOINT ["/usr/local/bin/view-builder"]
CMD ["run"]

# What the console changes, it changes by the commands of the relay and the builder. They stand beside it.
FROM ${BASE_IMAGE} AS console
LABEL org.opencontainers.image.title="console" org.opencontainers.image.licenses="Apache-2.0 OR MIT"
COPY --from=programs /programs/console /programs/outbox-relay /programs/view-builder /usr/local/bin/
COPY sql/views /usr/share/view-builder/views
USER 65532:65532
ENV LISTEN=0.0.0.0:8080 ADMIN_LISTEN=0.0.0.0:8086 VIEWS=/usr/share/view-builder/views
EXPOSE 8080 8086
HEALTHCHECK --interval=2s --timeout=3s --start-period=30s --retries=4 CMD ["/usr/local/bin/console", "health"]
ENTRYPOINT ["/usr/local/bin/console"]
