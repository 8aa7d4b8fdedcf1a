package dockerfile

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/rogpeppe/go-internal/txtar"

	"img/registry/image"
)

var update = flag.Bool("update", false, "rewrite the expected plans and errors")

const cases = "../../testdata/dag/dockerfile"

// A case is an archive of
//
//	Dockerfile
//	base.json   configurations by reference; without it every reference is a small image
//	options     Options as JSON; with "Platforms" instead of "Platform", a plan is made for each and they are merged
//	ignore      instead of a Dockerfile: an ignore file, and
//	paths       the paths to match
//	plan        what is expected, or
//	error       the error and its hint
func TestPlan(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(cases, "*.txtar"))
	if err != nil || len(files) < 80 {
		t.Fatalf("%d cases, %v", len(files), err)
	}
	for _, name := range files {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar"), func(t *testing.T) { golden(t, name) })
	}
}

func golden(t *testing.T, name string) {
	a, err := txtar.ParseFile(name)
	if err != nil {
		t.Fatal(err)
	}
	kind, got := outcome(t, a)
	if *update {
		kept := a.Files[:0]
		for _, f := range a.Files {
			if f.Name != "plan" && f.Name != "error" {
				kept = append(kept, f)
			}
		}
		a.Files = append(kept, txtar.File{Name: kind, Data: []byte(got)})
		if err := os.WriteFile(name, txtar.Format(a), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if want, ok := file(a, kind); !ok || want != got {
		t.Errorf("%s is\n%s\nwant\n%s", kind, got, want)
	}
}

func file(a *txtar.Archive, name string) (string, bool) {
	for _, f := range a.Files {
		if f.Name == name {
			return string(f.Data), true
		}
	}
	return "", false
}

func outcome(t *testing.T, a *txtar.Archive) (kind, text string) {
	if src, ok := file(a, "ignore"); ok {
		return ignoreOutcome(a, src)
	}
	var o struct {
		Options
		Platforms []string
	}
	o.Options = Options{Platform: "linux/amd64", BuildPlatform: "linux/amd64", Image: true}
	if src, ok := file(a, "options"); ok {
		d := json.NewDecoder(strings.NewReader(src))
		d.DisallowUnknownFields()
		if err := d.Decode(&o); err != nil {
			t.Fatal(err)
		}
	}
	src, _ := file(a, "Dockerfile")
	f, err := Parse("Dockerfile", []byte(src))
	if err != nil {
		return "error", errorText(err)
	}
	if o.Platforms == nil {
		p, text, err := lowered(f, o.Options, bases(t, a))
		if err != nil {
			return "error", errorText(err)
		}
		return "plan", text + p.String()
	}
	var plans []*Plan
	for _, platform := range o.Platforms {
		o.Platform = platform
		p, bases, err := lowered(f, o.Options, bases(t, a))
		if err != nil {
			return "error", errorText(err)
		}
		plans, text = append(plans, p), text+bases
	}
	p, err := Merge(plans, o.Annotations)
	if err != nil {
		return "error", errorText(err)
	}
	return "plan", text + p.String()
}

// lowered also tells which bases it asks for, a line each.
func lowered(f *File, o Options, base func(BaseRef) (*image.Image, error)) (p *Plan, text string, err error) {
	refs, err := f.Refs(o)
	if err != nil {
		return nil, "", err
	}
	for _, r := range refs {
		text += fmt.Sprintf("base %s %s %s\n", strings.TrimSpace(r.Ref+" "+r.Layout), r.Platform, r.Pos)
	}
	p, err = Lower(f, o, base)
	return p, text, err
}

func errorText(err error) string {
	text := err.Error() + "\n"
	var e *Error
	if errors.As(err, &e) && e.Hint != "" {
		text += "hint: " + e.Hint + "\n"
	}
	return text
}

// bases is the fake of a registry.
func bases(t testing.TB, a *txtar.Archive) func(BaseRef) (*image.Image, error) {
	src, ok := file(a, "base.json")
	if !ok {
		return func(r BaseRef) (*image.Image, error) {
			os, arch, _ := strings.Cut(r.Platform, "/")
			arch, _, _ = strings.Cut(arch, "/")
			return fake(r.Ref, fmt.Appendf(nil, `{"os":%q,"architecture":%q,"config":{"Env":["PATH=/bin"]},"history":[{"created":"2026-01-02T03:04:05Z","created_by":"base %s"}],"rootfs":{"type":"layers","diff_ids":["sha256:%x"]}}`,
				os, arch, r.Ref, sha256.Sum256([]byte(r.Ref+r.Platform)))), nil
		}
	}
	var configs map[string]json.RawMessage
	if err := json.Unmarshal([]byte(src), &configs); err != nil {
		t.Fatal(err)
	}
	return func(r BaseRef) (*image.Image, error) {
		raw, ok := configs[r.Ref]
		if !ok {
			return nil, errors.New("not found")
		}
		return fake(r.Ref, raw), nil
	}
}

func fake(ref string, raw []byte) *image.Image {
	img := &image.Image{RawConfig: raw}
	c, err := v1.ParseConfigFile(bytes.NewReader(raw))
	if err != nil {
		panic(err)
	}
	img.Config = c
	for _, d := range c.RootFS.DiffIDs {
		img.Layers = append(img.Layers, image.Layer{DiffID: d, Descriptor: v1.Descriptor{Digest: d, Size: 1, MediaType: types.OCILayer}})
	}
	return img
}

func ignoreOutcome(a *txtar.Archive, src string) (kind, text string) {
	g, err := ParseIgnore(".dockerignore", []byte(src))
	if err != nil {
		return "error", errorText(err)
	}
	for _, p := range g.Patterns() {
		text += "pattern " + p + "\n"
	}
	paths, _ := file(a, "paths")
	for _, p := range strings.Fields(paths) {
		ignored, line := g.Match(p)
		text += fmt.Sprintf("%s ignored=%v line=%d prune=%v\n", p, ignored, line, g.Prune(p))
	}
	return "plan", text
}

// Lowering is linear in the stages, and does not recurse along them.
func TestLongChain(t *testing.T) {
	var b strings.Builder
	b.WriteString("FROM base AS s0\n")
	for i := 1; i < maxStages; i++ {
		fmt.Fprintf(&b, "FROM s%d AS s%d\nENV V=%d\nARG A\nRUN a\nCOPY --from=s%d /x /y\n", i-1, i, i, i-1)
	}
	f, err := Parse("Dockerfile", []byte(b.String()))
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	p, err := Lower(f, Options{Platform: "linux/amd64", Image: true}, bases(t, &txtar.Archive{}))
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(start)
	t.Logf("%d stages took %v", maxStages, took)
	if took > 10*time.Second { // it takes a fifth of a second; the machine may be busy, and the race detector on
		t.Errorf("%d stages took %v", maxStages, took)
	}
	if n, want := len(p.Graph.Vertices), 1+2*2*(maxStages-1)+1; n != want {
		t.Errorf("%d vertices, want %d", n, want)
	}
}

// What is at a limit is read, what is one over it is an error with a place.
func TestLimits(t *testing.T) {
	for name, text := range map[string]func(over int) string{
		"file":     func(over int) string { return "FROM scratch\n" + string(body(maxFile-13+over)) },
		"line":     func(over int) string { return "FROM scratch\n" + label(maxLine+over) },
		"heredoc":  func(over int) string { return "FROM scratch\nCOPY <<a /\n" + string(body(maxHeredoc-1+over)) + "\na\n" },
		"stages":   func(over int) string { return strings.Repeat("FROM scratch\n", maxStages+over) },
		"nesting":  func(over int) string { return "FROM scratch\nENV a=" + nest(maxNesting+over) },
		"document": func(over int) string { return "FROM scratch\nCOPY <<a /\n" + nest(maxNesting+over) + "\na\n" },
	} {
		if _, err := Parse("Dockerfile", []byte(text(0))); err != nil {
			t.Errorf("%s at the limit: %v", name, err)
		}
		var e *Error
		if _, err := Parse("Dockerfile", []byte(text(1))); !errors.As(err, &e) {
			t.Errorf("%s over the limit: %v", name, err)
		}
	}
	if _, err := ParseIgnore("i", body(maxIgnoreFile)); err != nil {
		t.Errorf("ignore file at the limit: %v", err)
	}
	if _, err := ParseIgnore("i", body(maxIgnoreFile+1)); err == nil {
		t.Error("ignore file over the limit is read")
	}
	if _, err := ParseIgnore("i", bytes.Repeat([]byte("a\n"), maxIgnorePatterns)); err != nil {
		t.Errorf("patterns at the limit: %v", err)
	}
	if _, err := ParseIgnore("i", bytes.Repeat([]byte("a\n"), maxIgnorePatterns+1)); err == nil {
		t.Error("patterns over the limit are read")
	}
}

func nest(n int) string { return strings.Repeat("${a:-", n) + strings.Repeat("}", n) }

// label is an instruction of n bytes, on lines that are short enough.
func label(n int) string {
	const start, line = "LABEL a=", 1000
	var b strings.Builder
	b.WriteString(start)
	for left := n - len(start); left > 0; left -= line {
		b.WriteString(strings.Repeat("x", min(left, line)))
		if left > line {
			b.WriteString("\\\n")
		}
	}
	return b.String()
}

// body is n bytes of short lines.
func body(n int) []byte {
	return bytes.Repeat([]byte(strings.Repeat("#", 63)+"\n"), n/64+1)[:n]
}

// A file is not changed by lowering it, so that it can be lowered for several platforms at once.
func TestLowerAtOnce(t *testing.T) {
	f, err := Parse("Dockerfile", []byte("ARG V=1\nFROM alpine:$V\nARG V\nENV a=$V\nEXPOSE 80 $V\nCOPY $a <<E /$a/\n$a\nE\nRUN --mount=target=/$a x\n"))
	if err != nil {
		t.Fatal(err)
	}
	var plans [3]string
	var all sync.WaitGroup
	for i, v := range []string{"1", "2", "1"} {
		all.Go(func() {
			p, err := Lower(f, Options{BuildArgs: map[string]string{"V": v}, Platform: "linux/amd64"}, bases(t, &txtar.Archive{}))
			if err != nil {
				t.Error(err)
				return
			}
			plans[i] = p.String()
		})
	}
	all.Wait()
	if plans[0] != plans[2] || plans[0] == plans[1] {
		t.Errorf("plans differ:\n%s\n%s\n%s", plans[0], plans[1], plans[2])
	}
}
