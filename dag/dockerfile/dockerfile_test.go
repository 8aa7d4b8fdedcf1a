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
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/rogpeppe/go-internal/txtar"

	"img/dag"
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
//	.dockerignore
//	unknown     references of bases that cannot be had
//	plan        what is expected, or
//	error       the error and its hint, or
//	findings    what Check finds, or
//	outline     what the target can be given, or
//	targets     the stages, or
//	fixed       what Fix makes of the Dockerfile
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
			if !slices.Contains([]string{"plan", "error", "findings", "outline", "targets", "fixed"}, f.Name) {
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
	o := options(t, a)
	src, _ := file(a, "Dockerfile")
	if _, ok := file(a, "fixed"); ok {
		return "fixed", fixedText(src, o.Options, bases(t, a))
	}
	f, err := Parse("Dockerfile", []byte(src))
	if err != nil {
		return "error", errorText(err)
	}
	for kind, look := range map[string]func(*File, Options, func(BaseRef) (*image.Image, error)) string{
		"findings": findingsText, "outline": outlineText, "targets": targetsText,
	} {
		if _, ok := file(a, kind); ok {
			return kind, look(f, o.Options, bases(t, a))
		}
	}
	p, text, err := plan(f, o, bases(t, a))
	if err != nil {
		return "error", errorText(err)
	}
	return "plan", text + p.String()
}

// setTimes tells the times of contexts and sources: those that the file "times" names; without it nobody can be asked.
func setTimes(t testing.TB, a *txtar.Archive, o *Options) {
	text, ok := file(a, "times")
	if !ok {
		return
	}
	times := map[string]int64{}
	if err := json.Unmarshal([]byte(text), &times); err != nil {
		t.Fatal(err)
	}
	o.ContextTime = func(name string) (*int64, error) {
		if at, ok := times[name]; ok {
			return &at, nil
		}
		return nil, nil
	}
	o.SourceTime = func(op dag.Op) (*int64, error) {
		name := ""
		switch op := op.(type) {
		case *dag.HTTP:
			name = strings.TrimSuffix(op.URL+" "+op.Checksum, " ")
		case *dag.Git:
			name = op.Remote + "#" + op.Ref
		}
		at, ok := times[name]
		if !ok {
			return nil, fmt.Errorf("fetch %s: not found", name)
		}
		return &at, nil
	}
}

// caseOptions are a case's.
type caseOptions struct {
	Options
	Platforms []string
}

func options(t testing.TB, a *txtar.Archive) (o caseOptions) {
	o.Options = Options{Platform: "linux/amd64", BuildPlatform: "linux/amd64", Image: true}
	if src, ok := file(a, "options"); ok {
		d := json.NewDecoder(strings.NewReader(src))
		d.DisallowUnknownFields()
		if err := d.Decode(&o); err != nil {
			t.Fatal(err)
		}
	}
	setTimes(t, a, &o.Options)
	if text, ok := file(a, ".dockerignore"); ok {
		var err error
		if o.Ignore, err = ParseIgnore(".dockerignore", []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	return o
}

// plan lowers for one platform, or for each and merges. It also tells which bases were asked for.
func plan(f *File, o caseOptions, base func(BaseRef) (*image.Image, error)) (*Plan, string, error) {
	if o.Platforms == nil {
		return lowered(f, o.Options, base)
	}
	var plans []*Plan
	var text string
	for _, platform := range o.Platforms {
		o.Platform = platform
		p, bases, err := lowered(f, o.Options, base)
		if err != nil {
			return nil, "", err
		}
		plans, text = append(plans, p), text+bases
	}
	p, err := Merge(plans, o.Annotations)
	return p, text, err
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

func findingsText(f *File, o Options, base func(BaseRef) (*image.Image, error)) (text string) {
	found := Check(f, o, base)
	for _, r := range found.Unknown {
		text += fmt.Sprintf("unknown %s %s\n", r.Ref, r.Pos)
	}
	for _, w := range found.Warnings {
		text += fmt.Sprintf("%s: %s: %s\n", w.Pos, w.Rule, w.Text)
	}
	if found.Err != nil {
		text += "error: " + errorText(found.Err)
	}
	return text
}

func outlineText(f *File, o Options, base func(BaseRef) (*image.Image, error)) string {
	out, err := f.Outline(o, base)
	if err != nil {
		return "error: " + errorText(err)
	}
	text := fmt.Sprintf("name %q %q\n", out.Name, out.Description)
	for _, x := range out.Args {
		text += fmt.Sprintf("arg %s=%q %q %s\n", x.Name, x.Value, x.Description, x.Pos)
	}
	for kind, list := range [][]OutlineMount{out.Secrets, out.SSH, out.Caches} {
		for _, x := range list {
			text += fmt.Sprintf("%s %s required=%v %s\n", [...]string{"secret", "ssh", "cache"}[kind], x.Name, x.Required, x.Pos)
		}
	}
	return text
}

func targetsText(f *File, _ Options, _ func(BaseRef) (*image.Image, error)) (text string) {
	list, err := f.Targets()
	if err != nil {
		return "error: " + errorText(err)
	}
	for _, x := range list {
		text += fmt.Sprintf("%q base=%q platform=%q default=%v %q %s\n", x.Name, x.Base, x.Platform, x.Default, x.Description, x.Pos)
	}
	return text
}

// fixedText is what Fix makes of a Dockerfile, after the fixes as comments. Fixing that again changes nothing.
func fixedText(src string, o Options, base func(BaseRef) (*image.Image, error)) (text string) {
	out, err := Fix("Dockerfile", []byte(src), o, base)
	if err != nil {
		return "error: " + errorText(err)
	}
	again, err := Fix("Dockerfile", out.Source, o, base)
	if err != nil || len(again.Fixes) > 0 || !bytes.Equal(again.Source, out.Source) {
		return fmt.Sprintf("a second Fix: %+v, %v", again, err)
	}
	for _, w := range out.Fixes {
		text += fmt.Sprintf("fixed %d %s\n", w.Pos.Line, w.Rule)
	}
	return text + "---\n" + string(out.Source)
}

// bases is the fake of a registry.
func bases(t testing.TB, a *txtar.Archive) func(BaseRef) (*image.Image, error) {
	if names, ok := file(a, "unknown"); ok {
		known := bases(t, &txtar.Archive{})
		return func(r BaseRef) (*image.Image, error) {
			if slices.Contains(strings.Fields(names), r.Ref) {
				return nil, ErrUnknownBase
			}
			return known(r)
		}
	}
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
	small, large := lowerChain(t, maxStages/4), lowerChain(t, maxStages)
	t.Logf("%d stages took %d bytes, %d took %d", maxStages/4, small, maxStages, large)
	// Quadratic work would be sixteen times as much. It is counted in memory, since a busy machine bends every clock.
	if large > 5*small {
		t.Errorf("%d stages took %d bytes, four times as many %d", maxStages/4, small, large)
	}
}

// lowerChain lowers a chain of n stages and returns how many bytes that took in all.
func lowerChain(t *testing.T, n int) uint64 {
	var b strings.Builder
	b.WriteString("FROM base AS s0\n")
	for i := 1; i < n; i++ {
		fmt.Fprintf(&b, "FROM s%d AS s%d\nENV V=%d\nARG A\nRUN a\nCOPY --from=s%d /x /y\n", i-1, i, i, i-1)
	}
	f, err := Parse("Dockerfile", []byte(b.String()))
	if err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	p, err := Lower(f, Options{Platform: "linux/amd64", Image: true}, bases(t, &txtar.Archive{}))
	runtime.ReadMemStats(&after)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := len(p.Graph.Vertices), 1+2*2*(n-1)+1; got != want {
		t.Errorf("%d vertices, want %d", got, want)
	}
	return after.TotalAlloc - before.TotalAlloc
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

// buildKitRules are the checks of reference §1.12, each with its case in check-NAME.txtar.
var buildKitRules = strings.Fields(`StageNameCasing FromAsCasing NoEmptyContinuation ConsistentInstructionCasing DuplicateStageName
	ReservedStageName JSONArgsRecommended MaintainerDeprecated UndefinedArgInFrom WorkdirRelativePath UndefinedVar
	MultipleInstructionsDisallowed LegacyKeyValueFormat InvalidBaseImagePlatform RedundantTargetPlatform SecretsUsedInArgOrEnv
	InvalidDefaultArgInFrom FromPlatformFlagConstDisallowed CopyIgnoredFile InvalidDefinitionDescription ExposeProtoCasing
	ExposeInvalidFormat`)

// Every rule can be silenced by the directive and by the build argument that stands for it, and be made an error by both. The build
// argument goes first.
func TestRules(t *testing.T) {
	if len(buildKitRules) != 22 {
		t.Fatalf("%d rules", len(buildKitRules))
	}
	for _, rule := range buildKitRules {
		t.Run(rule, func(t *testing.T) {
			a, err := txtar.ParseFile(filepath.Join(cases, "check-"+rule+".txtar"))
			if err != nil {
				t.Fatal(err)
			}
			src, _ := file(a, "Dockerfile")
			experimental := ""
			if rest, ok := strings.CutPrefix(src, "# check=experimental="+rule+"\n"); ok {
				src, experimental = rest, ";experimental="+rule
			}
			for _, c := range []struct {
				directive, argument string
				found, fails        bool
			}{
				{"skip=none" + experimental, "", true, false},
				{"skip=" + rule, "", experimental != "", false},
				{"skip=all", "", experimental != "", false},
				{"error=true" + experimental, "", true, true},
				{"error=true;skip=" + rule, "", experimental != "", experimental != ""},
				{"error=true" + experimental, "skip=none" + experimental, true, false},
				{"skip=none", "error=true" + experimental, true, true},
				{"skip=none", "skip=" + rule, false, false},
			} {
				if experimental != "" && strings.Contains(c.directive, "skip=") && !strings.Contains(c.directive, "experimental") {
					c.found, c.fails = c.argument != "" && c.found, c.argument != "" && c.fails // without "experimental" it is off anyway
				}
				got := check(t, a, "# check="+c.directive+"\n"+src, c.argument)
				found := slices.ContainsFunc(got.Warnings, func(w Warning) bool { return w.Rule == rule })
				var v *Violation
				fails := errors.As(got.Err, &v) && slices.Contains(v.Rules, rule)
				if found != c.found || fails != c.fails {
					t.Errorf("directive %q, argument %q: found %v, fails %v", c.directive, c.argument, found, fails)
				}
			}
		})
	}
}

func check(t *testing.T, a *txtar.Archive, src, argument string) *Findings {
	o := Options{Platform: "linux/amd64", BuildPlatform: "linux/amd64", BuildArgs: map[string]string{}}
	if text, ok := file(a, "options"); ok {
		if err := json.Unmarshal([]byte(text), &o); err != nil {
			t.Fatal(err)
		}
	}
	if argument != "" {
		o.BuildArgs["BUILDKIT_DOCKERFILE_CHECK"] = argument
	}
	if text, ok := file(a, ".dockerignore"); ok {
		var err error
		if o.Ignore, err = ParseIgnore(".dockerignore", []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	f, err := Parse("Dockerfile", []byte(src))
	if err != nil {
		t.Fatal(err)
	}
	return Check(f, o, bases(t, a))
}

// Fixing twice is fixing once, leaves nothing to fix, and what is built is the same: over all cases of this directory.
func TestFixKeepsTheImage(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(cases, "*.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	fixed := 0
	for _, name := range files {
		a, err := txtar.ParseFile(name)
		if err != nil {
			t.Fatal(err)
		}
		src, ok := file(a, "Dockerfile")
		if ok && fixKeepsTheImage(t, name, src, bases(t, a)) {
			fixed++
		}
	}
	if fixed < 20 {
		t.Errorf("only %d of %d cases have something to fix", fixed, len(files))
	}
}

// fixKeepsTheImage reports whether there was something to fix.
func fixKeepsTheImage(t *testing.T, name, src string, base func(BaseRef) (*image.Image, error)) bool {
	o := Options{Platform: "linux/amd64", BuildPlatform: "linux/amd64", Image: true}
	out, err := Fix("Dockerfile", []byte(src), o, base)
	if err != nil || len(out.Fixes) == 0 {
		return false
	}
	again, err := Fix("Dockerfile", out.Source, o, base)
	if err != nil || !bytes.Equal(again.Source, out.Source) {
		t.Errorf("%s: a second fix makes\n%s\nof\n%s%v", name, again.Source, out.Source, err)
	}
	before, after := made(t, src, o, base), made(t, string(out.Source), o, base)
	if before != after {
		t.Errorf("%s: fixed, it builds\n%s\nand before\n%s", name, after, before)
	}
	return true
}

// made is what a plan makes, without where that stands and how it is shown.
func made(t *testing.T, src string, o Options, base func(BaseRef) (*image.Image, error)) string {
	f, err := Parse("Dockerfile", []byte(src))
	if err != nil {
		return err.Error()
	}
	p, err := Lower(f, o, base)
	if err != nil {
		return "error"
	}
	p.Warnings = nil
	for _, v := range p.Graph.Vertices {
		v.Pos, v.Name = dag.Pos{}, ""
	}
	return p.String()
}
