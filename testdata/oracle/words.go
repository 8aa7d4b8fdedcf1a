package main

import (
	"strings"
)

func (g *generator) pick(s ...string) string { return s[g.Intn(len(s))] }

func (g *generator) name() string {
	return g.pick("A", "B", "FOO", "BAR", "VERSION", "NODE_VERSION", "TARGETARCH", "TARGETPLATFORM", "TARGETSTAGE", "BUILDOS", "HTTP_PROXY", "no_proxy", "PATH", "EMPTY", "token", "a", "UID_GID", "BUILDKIT_SBOM_SCAN_STAGE", "TARGETVARIANT")
}

// variable is a use of a variable, in every form that there is, and in some that are errors.
func (g *generator) variable() string {
	n := g.name()
	switch g.Intn(22) {
	case 0, 1, 2, 3:
		return "$" + n
	case 4, 5, 6, 7:
		return "${" + n + "}"
	case 8:
		return "${" + n + ":-" + g.word(2) + "}"
	case 9:
		return "${" + n + "-" + g.word(2) + "}"
	case 10:
		return "${" + n + ":+" + g.word(2) + "}"
	case 11:
		return "${" + n + "+" + g.word(2) + "}"
	case 12:
		return "${" + n + "#" + g.pattern() + "}"
	case 13:
		return "${" + n + "##" + g.pattern() + "}"
	case 14:
		return "${" + n + "%" + g.pattern() + "}"
	case 15:
		return "${" + n + "%%" + g.pattern() + "}"
	case 16:
		return "${" + n + "/" + g.pattern() + "/" + g.pick("", "x", "$A", "-", "$1", "\\/") + "}"
	case 17:
		return "${" + n + "//" + g.pattern() + "/" + g.pick("", "x", "_", "${B}") + "}"
	case 18:
		return g.pick("$$", "$@", "$1", "$-", "${@}", "$?", "${1:-x}", "$!", "$", "${", "${}", "$(x)", "${A:?need}", "${B?}", "$A$B", "$Aé", "${A}é")
	}
	return "\\$" + n
}

func (g *generator) pattern() string {
	return g.pick("*", "?", "a", "*.", ".*", "v", "lin*", "\\*", "/", "\\/", "[a]", "$A", "é", "/*")
}

// word is a value of at most that depth.
func (g *generator) word(d int) string {
	switch g.Intn(14) {
	case 0, 1, 2:
		return g.pick("a", "b.txt", "dir/sub", "1.2.3", "v1", "x-y_z", "über", "日本", "a@b", "*", "*.go", "./", ".", "..", "0")
	case 3, 4, 5, 6:
		if d > 0 {
			return g.variable()
		}
		return "w"
	case 7:
		if d > 0 {
			return `"` + g.word(d-1) + ` ` + g.word(d-1) + `"`
		}
		return `"q"`
	case 8:
		return `'` + g.pick("lit $A", `a\b`, `"`, "x", "") + `'`
	case 9:
		return g.pick(`a\ b`, `\"`, `\\`, `\n`, `x\`+"t", `""`, `''`, `"\\"`, `"\$A"`, `'a'"b"c`, `"a'b"`, `\'`, "`x`", "\\`")
	case 10:
		if d > 0 {
			return g.word(d-1) + g.word(d-1)
		}
		return "z"
	case 11:
		return "pre" + g.variable()
	case 12:
		return g.variable() + "/post"
	}
	return g.pick("foo", "bar", "latest")
}

func (g *generator) path() string {
	return g.pick("/", "/app", "app/", "./", ".", "/usr/src/app/", "a", "b/*", "package*.json", "/x/./y", "./src/./z", "**/*.go", "$A/x", "${FOO:-src}/", "../up", "\"sp ace\"", "a\\ b", "//d//e", "/d/../e/", "file[0-9]", "~/x", "$B", "a/b/..", "")
}

func (g *generator) words(n int, f func() string) string {
	var s []string
	for range 1 + g.Intn(n) {
		s = append(s, f())
	}
	return strings.Join(s, g.pick(" ", "  ", "\t", " \\\n  ", " \\\n# c\n "))
}

func (g *generator) source() string {
	if len(g.stages) > 0 && g.Intn(3) > 0 {
		return g.pick(g.stages...)
	}
	return g.pick("alpine", "busybox:1.36", "scratch", "nope", "golang:1")
}

// flags are some of those, each once but for those that may stand there more often.
func (g *generator) flags(fs ...string) string {
	var out string
	seen := map[string]bool{}
	for range g.Intn(3) {
		f := g.pick(fs...)
		k, _, _ := strings.Cut(f, "=")
		if seen[k] && k != "--exclude" && k != "--mount" {
			continue
		}
		seen[k] = true
		out += f + " "
	}
	return out
}

// heredoc is "<<WORD", a NUL, and the lines that follow the instruction.
func (g *generator) heredoc() string {
	w := g.pick("EOF", "file.txt", "E-O", "x")
	dash := g.pick("", "-")
	q := w
	switch g.Intn(4) {
	case 0:
		q = "'" + w + "'"
	case 1:
		q = `"` + w + `"`
	}
	body := g.pick("hello $A\n", "\ttab ${B:-x}\n\t\ttwo\n", "#!/bin/sh\necho $A\n", "", "a \\$A \\\\ \"$A\" '$B'\n", "# comment\n\nline\n", "#!/usr/bin/env python3\nprint('$A')\n", "\\\nx\n", "${A\n")
	return "<<" + dash + q + "\x00" + body + g.tab(dash) + w + "\n"
}

func (g *generator) mount() string {
	return "--mount=" + g.pick(
		"type=cache,target=/root/.cache", "type=cache,target=$A/x,id=$B", "type=cache,id=${TARGETARCH}-x,target=rel,sharing=locked", "type=bind,target=/src", "type=bind,source=go.mod,target=go.mod",
		"target=.", "type=bind,from="+g.source()+",source=/a,target=/b", "type=bind,from="+g.source()+",target=/b,rw", "type=tmpfs,target=/tmp,size=64m", "type=tmpfs,dst=/t", "type=secret,id=tok", "type=secret,id=tok,env=TOK", "type=secret,id=a,target=/x,required", "type=secret,id=b,mode=0444,uid=10",
		"type=ssh", "type=ssh,id=k,required=true", "type=cache,target=/c,uid=1,gid=2,mode=0700", "type=cache,target=/c,from="+g.source()+",source=/s", "type=cache,target=/c,readonly", "type=${T:-cache},target=/m", "type=bind,target=/x,from=$A", "type=cache,target=", "target=/q,\"source=a b\"", "type=secret,src=zz,dst=q/r", "type=cache,sharing=Private,target=/d/../e", "type=tmpfs,target=/t,size=$A", "type=cache,target=~/x", "type=bind,target=/p,ro=false")
}

// tab indents the end of a heredoc that may be indented.
func (g *generator) tab(dash string) string {
	if dash == "-" && g.Intn(2) == 0 {
		return "\t"
	}
	return ""
}
