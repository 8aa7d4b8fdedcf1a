# img's own image. With a machine's own Go tree and modules, in place of those from the network:
#
#   img build -t img --build-context goroot=$(go env GOROOT) --build-context modules=$(go env GOMODCACHE)/cache/download .

ARG DEBIAN=debian:bookworm-slim

FROM golang:1.26-bookworm AS golang

FROM scratch AS goroot
COPY --from=golang /usr/local/go /

FROM scratch AS modules

FROM ${DEBIAN} AS debian

FROM debian AS build
RUN apt-get update && apt-get install -y --no-install-recommends \
    ca-certificates gcc libc6-dev libseccomp-dev pkg-config binutils \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
ENV PATH=/usr/local/go/bin:/usr/bin:/bin:/usr/sbin:/sbin \
    GOCACHE=/cache/build GOMODCACHE=/cache/modules GOFLAGS=-buildvcs=false GOTOOLCHAIN=local
ARG VERSION=dev
ARG COMMIT=
RUN --mount=type=bind,target=/src \
    --mount=type=bind,from=goroot,target=/usr/local/go \
    --mount=type=bind,from=modules,target=/modules \
    --mount=type=cache,target=/cache \
    GOPROXY="file:///modules,$(go env GOPROXY)" VERSION="$VERSION" COMMIT="$COMMIT" \
    contrib/build /usr/local/bin/img && /usr/local/bin/img version

# newuidmap and newgidmap are not static, so that the image has a base.
FROM debian
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates uidmap \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 user
COPY --from=build /usr/local/bin/img /usr/local/bin/img
USER user
ENV HOME=/home/user
WORKDIR /home/user
ENTRYPOINT ["img"]
CMD ["--help"]
