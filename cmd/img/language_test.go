package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/rogpeppe/go-internal/txtar"

	"img/registry/image"
)

// testdata/language shows the Dockerfile language row by row: a case builds a Dockerfile with the program under test and
// compares the image with what the specification says.
//
// A case is a txtar file AREA_WHAT.txtar. Its comment, lines that begin with "#", is the rule; a second line "# needs: …" is as
// in scripts. The files are
//
//	setup          lines for sh -e, run in context/ with umask 022 before the build, for what is not a plain file: ln -s, chmod,
//	               touch -d, mkfifo, truncate, setfattr. "tool" (testdata/toolbox) is in the PATH: tool tar <<END makes archives. img
//	               is the program under test, with the state of the case: img build -t base - <<END makes another base
//	flags          more arguments of img build, one a line; "$CASE" is the directory of the case
//	Dockerfile     what is built. Bases: busybox (as in scripts), users (usersBase below)
//	context/…      the build context; context/.dockerignore is its ignore file
//	any other…     files beside the context, for named contexts and options
//
// and of what is expected, any of which (one of the first four at least, or error):
//
//	tree           the merged files of the image, sorted by path, one a line, without those that are just as in the base
//	               (busybox or users) the image begins with, and "x PATH" for those of it that are gone:
//	                 TYPE MODE UID:GID SIZE PATH [-> LINK] [XATTR=HEX]... ["CONTENT"] [@MTIME]
//	               TYPE is f, d, l, p, c, b, or h for a further name of a file in the same layer; a device's size is its
//	               MAJOR,MINOR. Contents that are long or no text are sha256: and twelve digits. The time, in seconds since 1970, is
//	               compared only where a case gives one
//	layers         the entries of each layer above the base, after a line "layer", in the layer's order and the same form.
//	               Whiteouts are "x PATH"
//	config         the image configuration, "NAME VALUE" with VALUE as JSON, sorted; without times and layers
//	history        "layer CREATED_BY" or "empty CREATED_BY" for each entry
//	stderr         regular expressions, one a line, each of which matches a line of the standard error; "! EXPRESSION" matches none
//	error          the same, for a build that fails
//	buildah        how Debian's buildah differs, and why; see TestBuildah
//
// A section that is not there is not compared. -update writes tree, layers, config and history where a case has them (an empty
// section will do); what it wrote is to be read with the specification beside it.
const languageCases = "../../testdata/language"

var update = flag.Bool("update", false, "rewrite what language cases expect; read it before you believe it")

// usersBase is the base "users", in the form of tool tar: accounts, and directories and links to copy onto. It has no programs.
const usersBase = `
d 0755 0:0 1000000000 etc/
f 0644 0:0 1000000000 etc/passwd "root:x:0:0:root:/root:/bin/sh\nbuilder:x:1000:1001::/home/builder:/bin/sh\nweb:x:33:44::/srv/web:/bin/false\nfar:x:70000:80000::/:/bin/false\n"
f 0644 0:0 1000000000 etc/group "root:x:0:\nbuilders:x:1001:\nwww:x:44:\nstaff:x:50:web\nfarther:x:90000:\n"
d 0700 1000:1001 1000000000 home/
f 0600 1000:1001 1000000000 home/rc "rc\n"
d 1777 0:0 1000000000 tmp/
d 2775 33:50 1000000000 srv/
d 0711 33:44 1000000000 srv/web/
d 0750 3:4 1000000000 srv/web/sub/
f 4755 33:44 1000000000 srv/web/run "run\n"
l 0777 0:0 1000000000 rel srv/web
l 0777 0:0 1000000000 abs /srv/web
l 0777 0:0 1000000000 dangling srv/none
l 0777 0:0 1000000000 up ../../srv
l 0777 0:0 1000000000 chain rel
l 0777 0:0 1000000000 tofile srv/web/run
l 0777 0:0 1000000000 loop loop
`

// A language is what the cases of a run share. Each has a state of its own that begins with the base images: snapshots are named without
// the times of copied files, so that in a common one a case could get another's.
type language struct {
	*world
	side string
	// bases are the base images by the digest of their layer.
	bases map[string]map[string]treeFile
}

func TestLanguage(t *testing.T) {
	l := newLanguage(t)
	files, err := filepath.Glob(languageCases + "/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no cases", err)
	}
	for _, f := range files {
		t.Run(scriptName(f), func(t *testing.T) {
			if why := l.lacks(t, f); why != "" {
				t.Skip(why)
			}
			t.Parallel()
			l.run(t, f)
		})
	}
}

func newLanguage(t *testing.T) *language {
	t.Helper()
	l := &language{world: newWorld(t), side: openDir(t), bases: map[string]map[string]treeFile{}}
	t.Cleanup(func() {
		if err := l.removeSide(l.side); err != nil {
			t.Error(err)
		}
	})
	for _, dir := range []string{"home", "tmp", "cases"} {
		if err := os.Mkdir(filepath.Join(l.side, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	users := l.command("tool", "tar")
	users.Stdin = strings.NewReader(usersBase)
	data, err := users.Output()
	if err != nil {
		t.Fatal(err)
	}
	busybox, err := os.ReadFile(l.busybox)
	if err != nil {
		t.Fatal(err)
	}
	l.importBase(t, "users", data)
	l.importBase(t, "busybox", busybox)
	return l
}

// baseState is the state with the base images.
func (l *language) baseState() string { return filepath.Join(l.side, "state") }

// command prepares a program with the environment of all cases and the state with the base images.
func (l *language) command(name string, args ...string) *exec.Cmd {
	if name == "img" || name == "tool" {
		name = filepath.Join(l.bin, name)
	}
	cmd := exec.Command(name, args...)
	cmd.Dir = l.side
	cmd.Env = []string{
		"PATH=" + l.bin + ":" + os.Getenv("PATH") + ":/usr/sbin:/sbin", "HOME=" + filepath.Join(l.side, "home"),
		"TMPDIR=" + filepath.Join(l.side, "tmp"), "IMG_STATE=" + l.baseState(), "IMG_BACKEND=" + l.backend, "LC_ALL=C.UTF-8",
	}
	return cmd
}

func (l *language) importBase(t *testing.T, name string, data []byte) {
	t.Helper()
	cmd := l.command("img", "import", "-", name)
	cmd.Stdin = bytes.NewReader(data)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("import %s: %v\n%s", name, err, out)
	}
	s, i, err := stateImage(l.baseState(), name)
	if err != nil {
		t.Fatal(err)
	}
	files, err := mergedFiles(s, i.Layers)
	if err != nil {
		t.Fatal(err)
	}
	l.bases[i.Layers[0].DiffID.String()] = files
}

// A languageCase is one file of testdata/language, unpacked into dir.
type languageCase struct {
	*language
	file, dir string
	archive   *txtar.Archive
}

func (l *language) run(t *testing.T, file string) {
	a, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	c := &languageCase{l, file, filepath.Join(l.side, "cases", scriptName(file)), a}
	if !c.expects("tree", "layers", "config", "history", "error") {
		t.Fatal("the case expects nothing")
	}
	if err := c.prepare(); err != nil {
		t.Fatal(err)
	}
	stderr, err := c.build()
	switch failed := err != nil; {
	case failed && !c.expects("error"):
		t.Fatalf("img build: %v\n%s", err, stderr)
	case !failed && c.expects("error"):
		t.Fatalf("the build succeeded, and should not\n%s", stderr)
	case failed:
		c.match(t, "error", stderr)
		return
	}
	c.match(t, "stderr", stderr)
	store, i, err := stateImage(c.state(), c.tag())
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.results(store, i)
	if err != nil {
		t.Fatal(err)
	}
	c.compare(t, got)
}

// section is a file of the case; ok is false if it has none of that name.
func (c *languageCase) section(name string) (text string, ok bool) {
	for _, f := range c.archive.Files {
		if f.Name == name {
			return string(f.Data), true
		}
	}
	return "", false
}

func (c *languageCase) expects(names ...string) bool {
	return slices.ContainsFunc(names, func(n string) bool { _, ok := c.section(n); return ok })
}

func (c *languageCase) tag() string { return "case:" + strings.ToLower(scriptName(c.file)) }

// notFiles are the sections that are not written beside the context.
var notFiles = []string{"setup", "flags", "tree", "layers", "config", "history", "stderr", "error", "buildah"}

func (c *languageCase) state() string { return c.dir + ".state" }

// copyState gives the case the base images, whose blobs never change.
func (c *languageCase) copyState() error {
	from := filepath.Join(c.baseState(), "registry")
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to := filepath.Join(c.state(), "registry", strings.TrimPrefix(path, from))
		switch {
		case d.IsDir():
			return os.MkdirAll(to, 0o700)
		case filepath.Base(filepath.Dir(path)) == "sha256":
			return os.Link(path, to)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(to, data, 0o644)
	})
}

// prepare writes the case's files and runs its setup.
func (c *languageCase) prepare() error {
	if err := c.copyState(); err != nil {
		return err
	}
	context := filepath.Join(c.dir, "context")
	if err := os.MkdirAll(context, 0o755); err != nil {
		return err
	}
	for _, f := range c.archive.Files {
		if slices.Contains(notFiles, f.Name) {
			continue
		}
		to := filepath.Join(c.dir, filepath.FromSlash(f.Name))
		if err := errors.Join(os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, f.Data, 0o644)); err != nil {
			return err
		}
	}
	setup, _ := c.section("setup")
	cmd := c.command("sh", "-e")
	cmd.Dir = context
	cmd.Env = append(cmd.Env, "CASE="+c.dir, "IMG_STATE="+c.state())
	cmd.Stdin = strings.NewReader("umask 022\n" + setup)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("setup: %w\n%s", err, out)
	}
	return nil
}

// flags are the case's own arguments of img build.
func (c *languageCase) flags() (out []string) {
	flags, _ := c.section("flags")
	for f := range strings.Lines(flags) {
		out = append(out, strings.ReplaceAll(strings.TrimSuffix(f, "\n"), "$CASE", c.dir))
	}
	return out
}

// build runs img build and returns its standard error.
func (c *languageCase) build() (stderr string, err error) {
	args := []string{"build", "--progress=plain", "-t", c.tag(), "-f", filepath.Join(c.dir, "Dockerfile")}
	cmd := c.command("img", append(append(args, c.flags()...), filepath.Join(c.dir, "context"))...)
	cmd.Env = append(cmd.Env, "IMG_STATE="+c.state())
	var errs bytes.Buffer
	cmd.Stderr = &errs
	err = cmd.Run()
	return errs.String(), err
}

// match compares the lines of the standard error with a section of patterns.
func (c *languageCase) match(t *testing.T, section, stderr string) {
	t.Helper()
	patterns, _ := c.section(section)
	for p := range strings.Lines(patterns) {
		p, not := strings.CutPrefix(strings.TrimSuffix(p, "\n"), "! ")
		re, err := regexp.Compile("(?m)" + p)
		if err != nil {
			t.Fatalf("%s: %v", section, err)
		}
		if re.MatchString(stderr) == not {
			t.Errorf("%s: pattern %q, to match: %v; standard error:\n%s", section, p, !not, stderr)
		}
	}
}

// results prints what can be compared, by section.
func (c *languageCase) results(s image.Fetcher, i *image.Image) (map[string][]string, error) {
	out := map[string][]string{}
	base := c.baseOf(i)
	var err error
	if c.expects("tree") {
		expected, _ := c.section("tree")
		if out["tree"], err = treeLines(s, i, base, expected); err != nil {
			return nil, err
		}
	}
	if c.expects("layers") {
		layers := i.Layers
		if base != nil {
			layers = layers[1:]
		}
		if out["layers"], err = layerLines(s, layers); err != nil {
			return nil, err
		}
	}
	if out["config"], err = configLines(i.RawConfig); err != nil {
		return nil, err
	}
	out["history"], err = stepLines(i.RawConfig)
	return out, err
}

// baseOf returns the files of the base that an image begins with, nil if it is none of ours.
func (l *language) baseOf(i *image.Image) map[string]treeFile {
	if len(i.Layers) == 0 {
		return nil
	}
	return l.bases[i.Layers[0].DiffID.String()]
}

var (
	timed    = regexp.MustCompile(`^\S+ \d{4} \d+:\d+ \S+ (/.*) @-?\d+$`)
	pathOnly = regexp.MustCompile(`^(/\S*)`)
)

// treeLines lists an image without what is as in its base; the files that have a time in expected get theirs.
func treeLines(s image.Fetcher, i *image.Image, base map[string]treeFile, expected string) ([]string, error) {
	files, err := mergedFiles(s, i.Layers)
	if err != nil {
		return nil, err
	}
	withTime := map[string]bool{}
	for line := range strings.Lines(expected) {
		if m := timed.FindStringSubmatch(strings.TrimSuffix(line, "\n")); m != nil {
			withTime[pathOnly.FindString(m[1])] = true
		}
	}
	var out []string
	all := maps.Clone(files)
	for p := range base {
		all[p] = treeFile{}
	}
	for _, p := range slices.Sorted(maps.Keys(all)) {
		f, ok := files[p]
		old, was := base[p]
		switch {
		case !ok:
			out = append(out, "x "+p)
		case withTime[p]:
			out = append(out, fmt.Sprintf("%s @%d", f.full(), f.h.ModTime.Unix()))
		case !was || f.full() != old.full():
			out = append(out, f.full())
		}
	}
	return out, nil
}

func layerLines(s image.Fetcher, layers []image.Layer) ([]string, error) {
	var out []string
	for _, l := range layers {
		out = append(out, "layer")
		err := layerFiles(s, l, func(f treeFile) {
			line := f.full()
			dir, base := filepath.Split(filepath.Clean("/" + f.h.Name))
			if hidden, ok := strings.CutPrefix(base, ".wh."); ok {
				line = "x " + dir + hidden
			}
			out = append(out, line)
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// compare holds the results against the sections, or with -update writes them there.
func (c *languageCase) compare(t *testing.T, got map[string][]string) {
	t.Helper()
	for i, f := range c.archive.Files {
		lines, ok := got[f.Name]
		if !ok {
			continue
		}
		text := ""
		if len(lines) > 0 {
			text = strings.Join(lines, "\n") + "\n"
		}
		if *update {
			c.archive.Files[i].Data = []byte(text)
			continue
		}
		if d := diff.Diff("expected", f.Data, "got", []byte(text)); d != nil {
			t.Errorf("%s\n%s", f.Name, d)
		}
	}
	if *update {
		if err := os.WriteFile(c.file, txtar.Format(c.archive), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
