# make demo and make test are all a fresh machine needs, after Go, gcc, make and git; see README.md.

# Flags that every test of img shares with contrib/build.
TAGS    := netgo osusergo seccomp runc_nocriu
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMMIT  := $(shell git rev-parse HEAD 2>/dev/null)
GO      ?= go

PREFIX   ?= /usr/local
BINDIR   ?= $(PREFIX)/bin
FUZZTIME ?= 30s
ORACLE   ?= 5000
BENCH    ?= .

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

# The list keeps make from taking names of files for these.
.PHONY: help deps deps-test build demo test lint oracle bench fuzz install clean FORCE

help:
	@echo 'make deps       install what building needs (deps-test: what testing needs)'
	@echo 'make build      bin/img, one static binary'
	@echo 'make demo       build examples/hello with it, offline'
	@echo 'make test       every test, as every kind of user that we may become'
	@echo 'make lint       gofmt, go vet, staticcheck'
	@echo 'make oracle     what Dockerfiles mean, compared with BuildKit (ORACLE=files to generate)'
	@echo 'make bench      every benchmark (BENCH=regexp)'
	@echo 'make fuzz       every fuzz test for FUZZTIME=$(FUZZTIME)'
	@echo 'make install    into PREFIX=$(PREFIX), with the AppArmor profile; DESTDIR is honoured'
	@echo 'make clean      remove bin/'

deps:
	@contrib/deps build

deps-test: deps
	@contrib/deps test

build: bin/img

# go build knows best whether anything changed.
bin/img: deps FORCE
	@GO='$(GO)' VERSION='$(VERSION)' COMMIT='$(COMMIT)' contrib/build $@

demo: bin/img
	@examples/hello/demo

test: deps-test bin/img
	$(GO) vet -tags '$(TAGS)' ./... ./testdata/toolbox ./testdata/matrix
	@$(GO) run ./testdata/matrix

lint: deps
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -d $$(git ls-files '*.go'); exit 1; }
	$(GO) vet -tags '$(TAGS)' ./... ./testdata/toolbox ./testdata/matrix
	$(GO) run $(STATICCHECK) -tags '$(TAGS)' ./...

# A module of its own: BuildKit's client must not be in ours.
oracle: deps
	cd testdata/oracle && $(GO) vet -tags '$(TAGS)' . && $(GO) run -tags '$(TAGS)' . -n $(ORACLE)

bench: deps
	$(GO) test -tags '$(TAGS)' -run '^$$' -bench '$(BENCH)' -benchmem ./...

# The go command fuzzes one function at a time.
fuzz: deps
	@set -e; grep -rl --include='*_test.go' '^func Fuzz' . | while read -r file; do \
		sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$$file" | while read -r name; do \
			echo "$$name in $$(dirname "$$file")"; \
			$(GO) test -tags '$(TAGS)' -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) "$$(dirname "$$file")" </dev/null; \
		done; \
	done

install: bin/img
	install -D -m 0755 bin/img $(DESTDIR)$(BINDIR)/img
	install -d -m 0755 $(DESTDIR)/etc/apparmor.d
	sed 's,@BINDIR@,$(BINDIR),' contrib/apparmor/img > $(DESTDIR)/etc/apparmor.d/img
	chmod 0644 $(DESTDIR)/etc/apparmor.d/img
	@if [ -z '$(DESTDIR)' ] && [ -e /sys/kernel/security/apparmor/features/policy/unconfined_restrictions/userns ]; then \
		apparmor_parser -r /etc/apparmor.d/img; \
	fi

clean:
	rm -rf bin
