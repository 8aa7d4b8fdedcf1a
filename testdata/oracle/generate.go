package main

import (
	"fmt"
	"math/rand"
	"strings"
)

// A generator makes Dockerfiles that are odd, but mostly right. What it picks from are the places where lowering has rules.
type generator struct {
	*rand.Rand
	stages []string
}

// generate makes a case: global ARGs, some stages, and what it is built with.
func generate(r *rand.Rand) testcase {
	g := &generator{Rand: r}
	parts := g.head()
	for i := range 1 + g.Intn(4) {
		parts = append(parts, g.from(i))
		for range g.Intn(5) {
			parts = append(parts, g.instruction(false)+"\n")
		}
	}
	if g.Intn(3) == 0 {
		for i := range parts {
			parts[i] = strings.ReplaceAll(parts[i], "\n", "\r\n")
		}
	}
	c := testcase{parts: parts, source: strings.Join(parts, "")}
	g.surround(&c)
	return c
}

func (g *generator) head() (parts []string) {
	if g.Intn(8) == 0 {
		parts = append(parts, g.pick("# escape=`\n", "# syntax=docker/dockerfile:1\n", "# check=skip=JSONArgsRecommended\n",
			"# syntax=docker/dockerfile:1.7-labs\n# escape=\\\n", "#escape = `\n", "# check=error=true\n"))
	}
	for range g.Intn(4) {
		parts = append(parts, "ARG "+g.words(2, g.declaration)+"\n")
	}
	return parts
}

func (g *generator) from(number int) string {
	base := g.pick("alpine", "full", "scratch", "node:onbuild", "full:$VERSION", "alpine-${TARGETARCH}", "${FOO:-alpine}", "$BAR")
	if len(g.stages) > 0 && g.Intn(2) == 0 {
		base = g.pick(g.stages...)
		if g.Intn(6) == 0 {
			base = "${X:-" + base + "}"
		}
	}
	from := g.pick("FROM ", "FROM ", "FROM ", "from ", "FROM --platform=$BUILDPLATFORM ", "FROM --platform=linux/arm64 ",
		"FROM --platform=${TARGETPLATFORM} ") + base
	if g.Intn(4) > 0 {
		name := g.pick("build", "Base", "s"+fmt.Sprint(number), "x.y-z_"+fmt.Sprint(number))
		g.stages = append(g.stages, name)
		from += g.pick(" AS ", " as ", " As ") + name
	}
	return from + "\n"
}

// surround adds what the file is built with.
func (g *generator) surround(c *testcase) {
	for range g.Intn(3) {
		if c.args == nil {
			c.args = map[string]string{}
		}
		c.args[g.name()] = g.pick("x", "", "1.2.3", "a b", "$A", "linux/arm64", "\"q\"", "é")
	}
	if len(g.stages) > 0 && g.Intn(5) == 0 {
		c.target = g.pick(append(g.stages, "0", "BUILD")...)
	}
	if g.Intn(8) == 0 {
		c.platform = g.pick("linux/arm64", "linux/arm/v7", "linux/s390x")
	}
	if g.Intn(8) == 0 {
		c.labels = map[string]string{"a": "cli"}
	}
	if strings.Contains(c.source, "onbuild") {
		g.stages = nil // those of the file are unknown to an image's triggers
		for range 1 + g.Intn(3) {
			c.triggers = append(c.triggers, g.instruction(true))
		}
	}
}
