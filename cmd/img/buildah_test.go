package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/rogpeppe/go-internal/txtar"

	"img/registry/image"
)

// TestBuildah builds the cases of testdata/language with Debian's buildah as well, and compares tree, configuration and history of the two
// images. buildah is no specification (BuildKit is): the test shows that nothing differs for a reason that nobody has thought about.
//
// What always differs stands in buildahClasses, what differs in one case in its section "buildah", a line each:
//
//	SECTION EXPRESSION :: REASON
//
// SECTION is tree, config or history, and the expression matches the lines that only img ("-LINE") or only buildah ("+LINE") has; or it is
// fails, and the expression matches what buildah says when it cannot build the case. "SECTION?" is for what buildah does in some runs.
// A difference that nothing explains fails, and so does an explanation of what does not differ any more.
func TestBuildah(t *testing.T) {
	d := newDifferential(t)
	files, err := filepath.Glob(languageCases + "/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no cases", err)
	}
	t.Cleanup(func() {
		t.Log(d.summary())
		closing = append(closing, d.total())
	})
	for _, f := range files {
		if d.lacks(t, f) != "" {
			continue // TestLanguage tells
		}
		t.Run(scriptName(f), func(t *testing.T) {
			t.Parallel()
			d.run(t, f)
		})
	}
}

// buildahCannot are cases that are not tried, by what stands in their Dockerfile or flags: what buildah 1.28 does not know.
var buildahCannot = []struct {
	what    string
	pattern *regexp.Regexp
}{
	{"heredocs", regexp.MustCompile(`(?mi)^(ONBUILD\s+)?(RUN|COPY|ADD)\b.*<<-?["'\w]`)},
	{"COPY --link, --parents, --exclude, ADD --unpack, --checksum, --keep-git-dir",
		regexp.MustCompile(`--(link|parents|exclude|unpack|checksum|keep-git-dir)\b`)},
	{"symbolic modes", regexp.MustCompile(`--chmod=[^0-9\s"$]*[augorwx]*[-+=]`)},
	{"patterns and replacement in variables", regexp.MustCompile(`\$\{\w+(#|%|/|:?\?|[-+])`)},
	{"HEALTHCHECK --start-interval", regexp.MustCompile(`--start-interval`)},
	{"flags that buildah has with another meaning, or not",
		regexp.MustCompile(`(?m)^--(source-date-epoch|rewrite-timestamp|inherit-labels|unsetlabel|strict|platform|no-cache|omit-history|squash)`)},
	{"SOURCE_DATE_EPOCH", regexp.MustCompile(`SOURCE_DATE_EPOCH`)},
	{"RUN --network, --security, --device", regexp.MustCompile(`(?m)^RUN .*--(network|security|device)\b`)},
	{"TARGETSTAGE", regexp.MustCompile(`TARGETSTAGE`)},
}

// buildahClasses are the differences that are the same for all cases.
var buildahClasses = []struct {
	section, reason string
	pattern         *regexp.Regexp
}{
	{"config", "Docker's own format has the container that made the image", regexp.MustCompile(
		`^\+(Hostname|Domainname|Attach\w+|Tty|OpenStdin|StdinOnce|Image|container|container_config|parent) `)},
	{"config", "buildah writes fields that are not set", regexp.MustCompile(`^\+\w+ (null|""|\[\]|\{\}|false)$`)},
	{"config", "ArgsEscaped is BuildKit's", regexp.MustCompile(`^-ArgsEscaped true$`)},
	{"config", "BuildKit's FROM scratch begins in /", regexp.MustCompile(`^-WorkingDir "/"$`)},
	{"tree", "buildah's RUN leaves its mount points behind", regexp.MustCompile(
		`^\+(d 0755 0:0 0 /(dev|proc|run|sys)|f 0[67][05][05] 0:0 0 /(etc/(hostname|hosts|resolv.conf)|run/.containerenv))$`)},
}

// What is counted of the cases that are tried.
const (
	bothEqual   = "cases: built by both, equal"
	bothDiffer  = "cases: built by both, differ with a reason"
	cannot      = "cases: buildah fails, explained"
	unexplained = "cases: differ without a reason"
)

// A differential runs cases with buildah, one at a time in each of its stores.
type differential struct {
	*language
	dir    string
	stores chan string
	mu     sync.Mutex
	counts map[string]int
}

func newDifferential(t *testing.T) *differential {
	t.Helper()
	w := newWorld(t)
	for _, need := range []string{"root", "overlayfs"} {
		if !slices.Contains(w.facts, need) {
			t.Skip("not as this user or with this backend: needs " + need)
		}
	}
	if _, err := lookPath("buildah"); err != nil && os.Getenv("IMG_TEST_NO_SKIP") != "" {
		t.Fatal("needs buildah, and nothing may skip here")
	} else if err != nil {
		t.Skip("needs the program buildah, see make deps-test")
	}
	d := &differential{language: newLanguage(t), stores: make(chan string, runtime.GOMAXPROCS(0)), counts: map[string]int{}}
	d.dir = storesDir(t)
	for i := range cap(d.stores) {
		store := filepath.Join(d.dir, fmt.Sprint(i))
		for _, base := range []string{"busybox", "users"} {
			if err := d.load(store, d.baseState(), base); err != nil {
				t.Fatal(err)
			}
		}
		d.stores <- store
	}
	return d
}

// storesDir is in memory if possible: buildah syncs whatever it writes.
func storesDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "img-test-")
	if err != nil {
		dir, err = os.MkdirTemp("", "img-test-")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func (d *differential) buildah(store string, args ...string) *exec.Cmd {
	cmd := d.command("buildah", append([]string{"--root", filepath.Join(store, "root"), "--runroot", filepath.Join(store, "run"),
		"--storage-driver", "vfs"}, args...)...)
	cmd.Env = append(cmd.Env, "TMPDIR="+d.dir)
	return cmd
}

// load gives a store an image of a state.
func (d *differential) load(store, state, name string) error {
	archive := store + ".tar"
	save := d.command("img", "save", "-o", archive, name)
	save.Env = append(save.Env, "IMG_STATE="+state)
	defer os.Remove(archive)
	for _, cmd := range []*exec.Cmd{save, d.buildah(store, "pull", "-q", "docker-archive:"+archive)} {
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("load %s into buildah's store: %w\n%s", name, err, out)
		}
	}
	return nil
}

func (d *differential) count(what string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.counts[what]++
}

func (d *differential) summary() string {
	var b strings.Builder
	for _, what := range slices.Sorted(maps.Keys(d.counts)) {
		fmt.Fprintf(&b, "%5d %s\n", d.counts[what], what)
	}
	return "buildah:\n" + b.String()
}

// total is the summary in a line.
func (d *differential) total() string {
	untried, all := 0, 0
	for what, n := range d.counts {
		switch {
		case strings.HasPrefix(what, "not tried: "):
			untried += n
			fallthrough
		case strings.HasPrefix(what, "cases: "):
			all += n
		}
	}
	return fmt.Sprintf("buildah: of %d cases %d equal, %d differ with a reason, %d it cannot build, %d not tried, %d unexplained", all,
		d.counts[bothEqual], d.counts[bothDiffer], d.counts[cannot], untried, d.counts[unexplained])
}

func (d *differential) run(t *testing.T, file string) {
	a, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	c := &languageCase{d.language, file, filepath.Join(d.side, "cases", scriptName(file)), a}
	if why := c.untried(); why != "" {
		if c.expects("buildah") {
			t.Errorf("the case explains differences, and is not tried: %s", why)
		}
		d.count("not tried: " + why)
		return
	}
	if err := c.prepare(); err != nil {
		t.Fatal(err)
	}
	ours, err := c.ours()
	if err != nil {
		t.Fatal(err)
	}
	store := <-d.stores
	defer func() { d.stores <- store }()
	theirs, said, err := d.theirs(store, c)
	if err != nil {
		t.Fatal(err)
	}
	d.judge(t, c, difference(ours, theirs, said))
}

// untried says why buildah is not tried on a case, "" if it is.
func (c *languageCase) untried() string {
	if c.expects("error") {
		return "the build is to fail"
	}
	flags, _ := c.section("flags")
	text, _ := c.section("Dockerfile")
	setup, _ := c.section("setup")
	for _, x := range buildahCannot {
		if x.pattern.MatchString(flags) || x.pattern.MatchString(text) || strings.Contains(setup, "img build") && x.pattern.MatchString(setup) {
			return x.what
		}
	}
	return ""
}

// ours builds the case and prints the image.
func (c *languageCase) ours() (map[string][]string, error) {
	if stderr, err := c.build(); err != nil {
		return nil, fmt.Errorf("img build: %w\n%s", err, stderr)
	}
	s, i, err := stateImage(c.state(), c.tag())
	if err != nil {
		return nil, err
	}
	return c.printed(s, i)
}

// printed is what is compared of an image: the tree without times, the configuration, and the instructions of its history.
func (c *languageCase) printed(s image.Fetcher, i *image.Image) (map[string][]string, error) {
	out := map[string][]string{}
	var err error
	if out["tree"], err = treeLines(s, i, c.baseOf(i), ""); err != nil {
		return nil, err
	}
	if out["config"], err = configLines(i.RawConfig); err != nil {
		return nil, err
	}
	steps, err := stepLines(i.RawConfig)
	for _, s := range steps {
		if s = keyword(s); s != "ONBUILD" { // which leaves no entry in BuildKit's histories
			out["history"] = append(out["history"], s)
		}
	}
	return out, err
}

var (
	nop   = regexp.MustCompile(`^(?:layer|empty) /bin/sh -c #\(nop\)\s+(\w+)`)
	named = regexp.MustCompile(`^(?:layer|empty) ([A-Z]+)\b`)
	bare  = regexp.MustCompile(`^(?:layer|empty)  \(`)
)

// keyword is the instruction that an entry of a history is of: the two programs write them in forms of their own, BuildKit's and the
// classic builder's, in which all but RUN begin with "#(nop)".
func keyword(step string) string {
	switch m, n := nop.FindStringSubmatch(step), named.FindStringSubmatch(step); {
	case m != nil:
		return strings.ToUpper(m[1])
	case n != nil:
		return n[1]
	case bare.MatchString(step):
		return "import"
	}
	return "RUN"
}

// theirs builds the case with buildah and prints the image. If buildah fails, said is what it says.
func (d *differential) theirs(store string, c *languageCase) (_ map[string][]string, said string, err error) {
	more, err := c.ownBases()
	if err != nil {
		return nil, "", err
	}
	for _, base := range more {
		if err := d.load(store, c.state(), base); err != nil {
			return nil, "", err
		}
	}
	out := dirImage(filepath.Join(d.dir, scriptName(c.file)))
	defer os.RemoveAll(string(out))
	args := []string{"build", "--isolation", "chroot", "--layers=false", "--format", "docker", "--identity-label=false", "--pull=never",
		"--quiet", "-t", "dir:" + string(out), "-f", filepath.Join(c.dir, "Dockerfile")}
	cmd := d.buildah(store, append(append(args, c.flags()...), filepath.Join(c.dir, "context"))...)
	text, err := cmd.CombinedOutput()
	if len(more) > 0 {
		if out, rerr := d.buildah(store, append([]string{"rmi", "-f"}, more...)...).CombinedOutput(); rerr != nil {
			return nil, "", fmt.Errorf("buildah rmi: %w\n%s", rerr, out)
		}
	}
	if err != nil {
		return nil, string(text), nil
	}
	i, err := out.load()
	if err != nil {
		return nil, "", err
	}
	p, err := c.printed(out, i)
	return p, "", err
}

// ownBases are the images that the case's setup has made.
func (c *languageCase) ownBases() (names []string, err error) {
	var index v1.IndexManifest
	data, err := os.ReadFile(filepath.Join(c.state(), "registry", "index.json"))
	if err == nil {
		err = json.Unmarshal(data, &index)
	}
	for _, m := range index.Manifests {
		name := strings.TrimPrefix(m.Annotations["org.opencontainers.image.ref.name"], "docker.io/library/") // buildah has it as localhost/
		own := !slices.ContainsFunc([]string{"busybox:", "users:", c.tag()}, func(s string) bool { return strings.HasPrefix(name, s) })
		if own && name != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names, err
}

// A dirImage is an image in a directory, as containers' transport "dir:" has it.
type dirImage string

// Fetch implements image.Fetcher.
func (d dirImage) Fetch(_ context.Context, desc v1.Descriptor) (io.ReadCloser, error) {
	f, err := os.Open(filepath.Join(string(d), desc.Digest.Hex))
	if errors.Is(err, os.ErrNotExist) {
		f, err = os.Open(filepath.Join(string(d), "manifest.json"))
	}
	return f, err
}

func (d dirImage) load() (*image.Image, error) {
	raw, err := os.ReadFile(filepath.Join(string(d), "manifest.json"))
	if err != nil {
		return nil, err
	}
	desc := v1.Descriptor{MediaType: types.DockerManifestSchema2, Digest: image.Digest(raw), Size: int64(len(raw))}
	return image.Load(context.Background(), d, desc, image.HostPlatform())
}

// A differs is a line that only one of two images has, "-LINE" or "+LINE", or what buildah said when it failed.
type differs struct{ section, line string }

// difference compares two printed images, line by line; a history is one line.
func difference(ours, theirs map[string][]string, said string) (out []differs) {
	if theirs == nil {
		return []differs{{"fails", said}}
	}
	for _, section := range []string{"tree", "config", "history"} {
		a, b := ours[section], theirs[section]
		if section == "history" {
			a, b = []string{strings.Join(a, " ")}, []string{strings.Join(b, " ")}
		}
		for _, l := range a {
			if !slices.Contains(b, l) {
				out = append(out, differs{section, "-" + l})
			}
		}
		for _, l := range b {
			if !slices.Contains(a, l) {
				out = append(out, differs{section, "+" + l})
			}
		}
	}
	return out
}

// An explanation is a line of a case's section "buildah".
type explanation struct {
	section string
	pattern *regexp.Regexp
	// used says that it has explained something, or need not.
	used bool
}

func (c *languageCase) explanations() (out []*explanation, err error) {
	text, _ := c.section("buildah")
	for line := range strings.Lines(text) {
		rule, reason, ok := strings.Cut(line, " :: ")
		section, pattern, ok2 := strings.Cut(rule, " ")
		section, sometimes := strings.CutSuffix(section, "?")
		if !ok || !ok2 || strings.TrimSpace(reason) == "" || !slices.Contains([]string{"tree", "config", "history", "fails"}, section) {
			return nil, fmt.Errorf("buildah: %q is not SECTION EXPRESSION :: REASON", line)
		}
		re, err := regexp.Compile(pattern)
		if err != nil {
			return nil, fmt.Errorf("buildah: %w", err)
		}
		out = append(out, &explanation{section: section, pattern: re, used: sometimes})
	}
	return out, nil
}

// judge looks for the reason of every difference, and for a difference of every reason.
func (d *differential) judge(t *testing.T, c *languageCase, all []differs) {
	own, err := c.explanations()
	if err != nil {
		t.Fatal(err)
	}
	var open []string
	for _, x := range all {
		class := classOf(x)
		if class == "" && explain(own, x) {
			class = "explained in the case: " + x.section
		}
		if class == "" {
			open = append(open, x.section+" "+x.line)
			continue
		}
		d.count("differences: " + class)
	}
	for _, e := range own {
		if !e.used {
			t.Errorf("buildah: nothing differs any more in %s that %q explains", e.section, e.pattern)
		}
	}
	switch {
	case len(open) > 0:
		d.count(unexplained)
		t.Errorf("unexplained:\n%s", strings.Join(open, "\n"))
	case len(own) > 0 && own[0].section == "fails":
		d.count(cannot)
	case len(own) > 0:
		d.count(bothDiffer)
	default:
		d.count(bothEqual)
	}
}

func classOf(x differs) string {
	for _, c := range buildahClasses {
		if c.section == x.section && c.pattern.MatchString(x.line) {
			return c.section + ": " + c.reason
		}
	}
	return ""
}

func explain(own []*explanation, x differs) bool {
	for _, e := range own {
		if e.section == x.section && e.pattern.MatchString(x.line) {
			e.used = true
			return true
		}
	}
	return false
}
