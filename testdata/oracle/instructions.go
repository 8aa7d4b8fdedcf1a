package main

import (
	"fmt"
	"strings"
)

// instruction is one of a stage. One that is a trigger has no trigger itself.
func (g *generator) instruction(trigger bool) string {
	switch g.Intn(24) {
	case 0, 1, 2:
		return g.environment()
	case 3, 4, 5:
		return "ARG " + g.words(3, g.declaration)
	case 6:
		return "LABEL " + g.words(3, func() string {
			return g.pick("a", "b.c", "\"x y\"", "$A", "org.opencontainers.image.source") + "=" + g.word(2)
		})
	case 7:
		return "WORKDIR " + g.path()
	case 8:
		return "USER " + g.pick("app", "1000:1000", "$A", "${UID_GID:-1}:0", "root", "\"a\"", "'x y'", "a b", "app:0")
	case 9, 10, 11, 12, 13, 14:
		return g.metadata()
	case 15, 16, 17:
		return g.copy()
	case 18, 19, 20:
		return g.run()
	case 21:
		if !trigger {
			return "ONBUILD " + g.instruction(true)
		}
	case 22:
		return g.pick("MAINTAINER a b <c>", "MAINTAINER \"x\"", "# comment $A", "", "   # indented", "#\tx", "# check=skip=all")
	}
	return "RUN echo $" + g.name()
}

func (g *generator) environment() string {
	if g.Intn(3) == 0 {
		return "ENV " + g.name() + " " + g.words(3, func() string { return g.word(2) })
	}
	return "ENV " + g.words(3, func() string { return g.pick(g.name(), g.name(), "$A", "\"q k\"") + "=" + g.word(2) })
}

func (g *generator) declaration() string {
	if g.Intn(3) == 0 {
		return g.name()
	}
	return g.name() + "=" + g.word(2)
}

func (g *generator) metadata() string {
	switch g.Intn(6) {
	case 0:
		return "EXPOSE " + g.words(3, func() string {
			return g.pick("80", "443/tcp", "53/UDP", "8000-8002", "$A", "${PORT:-99}", "127.0.0.1:80:81", "8080:80/tcp", "70000",
				"80/foo", "\"90 91\"", "1-3:4-6", "[::1]:80:90")
		})
	case 1:
		return g.pick(`VOLUME ["/a", "/b c"]`, "VOLUME /a $A", "VOLUME \"/q\"", "VOLUME []", "VOLUME ['/a']", "VOLUME [\"$A\"]")
	case 2:
		return "STOPSIGNAL " + g.pick("SIGTERM", "9", "$A", "term", "SIGRTMIN+3", "0", "kill", "${S:-QUIT}")
	case 3:
		return g.pick("CMD", "ENTRYPOINT", "cmd") + " " + g.pick(`["a", "b"]`, `a $A`, `["a\u00e9\n"]`, `[]`, `['x']`, `["a",]`,
			`[ "a" ] # c`, `exec "x"`, "[\"a\", \\\n \"b\"]", `["\"q\"", "\\"]`, `[1]`, ``, `["a"] b`)
	case 4:
		return "HEALTHCHECK " + g.pick("NONE", "CMD x $A", `--interval=5s --retries=3 CMD ["a"]`, "--timeout=1m30s CMD curl",
			"--start-period=0s --start-interval=1s CMD a", "none", "--interval=0.5ms CMD x", "CMD", `CMD []`, "--retries=0 CMD x",
			"--interval=$A CMD x")
	}
	return g.pick(`SHELL ["/bin/bash", "-c"]`, `SHELL ["/bin/ash", "-eo", "pipefail", "-c"]`, `SHELL []`, `SHELL /bin/sh`, `SHELL ["a\u0062"]`)
}

func (g *generator) copy() string {
	flags := []string{"--chown=1000", "--chown=$A:$B", "--chown=app", "--chown=app:0", "--chmod=755", "--chmod=0644", "--chmod=u+x", "--chmod=$A", "--link",
		"--link=false", "--exclude=*.md", "--exclude=$A", "--exclude=!keep", "--chmod=go-w,a+X", "--link=true"}
	if g.Intn(3) == 0 {
		flags = append(flags, "--unpack", "--unpack=false", "--keep-git-dir=true", "--checksum=sha256:"+strings.Repeat("0", 64))
		return g.sources("ADD "+g.flags(flags...), true)
	}
	return g.sources("COPY "+g.flags(append(flags, "--from="+g.source(), "--from="+g.source(), "--parents")...), false)
}

// sources ends a COPY or ADD.
func (g *generator) sources(begin string, remote bool) string {
	switch g.Intn(6) {
	case 0:
		return begin + fmt.Sprintf("[%q, %q]", g.path(), g.path())
	case 1, 2:
		var words, bodies string
		for range 1 + g.Intn(2) {
			word, body, _ := strings.Cut(g.heredoc(), "\x00")
			words += word + " "
			bodies += body
		}
		if g.Intn(3) == 0 {
			words += g.path() + " "
		}
		return begin + words + g.path() + "\n" + strings.TrimSuffix(bodies, "\n")
	case 3:
		if remote {
			return begin + g.pick("https://example.com/a.tgz", "https://example.com/", "https://example.com/$A?q=1",
				"https://github.com/a/b.git#v1:d", "git@github.com:a/b.git", "https://example.com/r.git?ref=main") + " " + g.path()
		}
	}
	return begin + g.words(3, g.path) + " " + g.path()
}

func (g *generator) run() string {
	begin := "RUN "
	for range g.Intn(3) {
		begin += g.mount() + " "
	}
	begin += g.flags("--network=none", "--network=host", "--network=default", "--security=sandbox", "--security=insecure")
	switch g.Intn(6) {
	case 0:
		return begin + g.pick(`["a", "$A"]`, `["sh","-c","x\ty"]`, `[]`, `["a" "b"]`)
	case 1, 2:
		word, body, _ := strings.Cut(g.heredoc(), "\x00")
		return begin + g.pick("", "python3 ", "cat ", "3", "sh -x ") + word + g.pick("", " > /x", " | sh") + "\n" + strings.TrimSuffix(body, "\n")
	case 3:
		return begin + "a && \\\n  # note\n\n  b \\  \n && c"
	}
	return begin + g.pick("make", "echo $A ${B} # not a comment", "echo 'a\\\n b'", "x \\\\\ny", "echo \"${A:-x}\"", "set -eux; \\\n\tfoo; \\\n\tbar")
}
