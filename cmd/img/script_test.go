package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"img/userns"
)

// The environment tells the scripts what make test prepared; everything has a default, so that go test alone works.
//
//	IMG_BIN           the binary to test; made by go build if not given
//	IMG_TEST_BACKEND  overlayfs or native
//	IMG_TEST_CACHE    where bases that are dear to make are kept between runs
//	IMG_TEST_SHARED   a directory that is the same for the runs of all users: what must be equal everywhere is kept there
//	IMG_TEST_NO_SKIP  a tool that is missing is a failure
const scripts = "../../testdata/script"

// TestScript runs testdata/script. A script's first line is the promise, the second, if it begins with "# needs:", what
// it takes: root, user, subids, oneid, overlayfs, native, or a program.
func TestScript(t *testing.T) {
	w := newWorld(t)
	files, err := filepath.Glob(scripts + "/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	var some []string
	for _, f := range files {
		if why := w.lacks(t, f); why != "" {
			t.Run(scriptName(f), func(t *testing.T) { t.Skip(why) })
			continue
		}
		some = append(some, f)
	}
	testscript.Run(t, testscript.Params{
		Files: some,
		Setup: func(env *testscript.Env) error {
			root := filepath.Dir(env.WorkDir)
			t.Cleanup(func() { os.Remove(root) }) // testscript leaves it
			return w.setup(env)
		},
		Condition:           w.condition,
		Cmds:                w.commands(),
		RequireExplicitExec: true,
		UpdateScripts:       os.Getenv("IMG_TEST_UPDATE") != "",
	})
}

// A world is what all scripts of a run share.
type world struct {
	bin     string // directory with img and tool
	busybox string // root file system with busybox and tool, tar
	shared  string
	// ownShared says that shared is gone after the tests.
	ownShared bool
	cache     string
	source    string // the repository
	backend   string
	facts     []string // what is true: root, subids …
	fixtures  sync.Mutex
}

// theWorld is made once: linking the programs takes seconds.
var theWorld struct {
	sync.Mutex
	w *world
}

// closing are lines to print when all tests are done: what a run counted.
var closing []string

func TestMain(m *testing.M) {
	code := m.Run()
	for _, line := range closing {
		fmt.Println(line)
	}
	if w := theWorld.w; w != nil {
		os.RemoveAll(w.bin)
		if w.ownShared {
			os.RemoveAll(w.shared)
		}
	}
	os.Exit(code)
}

func newWorld(t *testing.T) *world {
	t.Helper()
	theWorld.Lock()
	defer theWorld.Unlock()
	if theWorld.w == nil {
		theWorld.w = makeWorld(t)
	}
	return theWorld.w
}

func makeWorld(t *testing.T) *world {
	t.Helper()
	source, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{
		bin: openDir(t), shared: os.Getenv("IMG_TEST_SHARED"), cache: os.Getenv("IMG_TEST_CACHE"), source: source,
		backend: os.Getenv("IMG_TEST_BACKEND"),
	}
	if w.shared == "" {
		w.shared, w.ownShared = openDir(t), true
	}
	if w.cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			dir = os.TempDir()
		}
		w.cache = filepath.Join(dir, "img-test")
	}
	if w.backend == "" {
		w.backend = "auto"
	}
	w.build(t)
	w.busybox = filepath.Join(w.bin, "busybox.tar")
	if err := writeBusybox(w.busybox, filepath.Join(w.bin, "tool")); err != nil {
		t.Fatalf("busybox base: %v", err)
	}
	w.look(t)
	return w
}

// openDir makes a temporary directory that other users can look into: some scripts change theirs. It stays until TestMain ends.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "img-test-")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// build makes the two programs: img unless it is given, and the toolbox.
func (w *world) build(t *testing.T) {
	t.Helper()
	if given := os.Getenv("IMG_BIN"); given != "" {
		if err := os.Symlink(given, filepath.Join(w.bin, "img")); err != nil {
			t.Fatal(err)
		}
	} else {
		goBuild(t, "1", filepath.Join(w.bin, "img"), ".")
	}
	goBuild(t, "0", filepath.Join(w.bin, "tool"), filepath.Join(w.source, "testdata", "toolbox"))
}

func goBuild(t *testing.T, cgo, out, pkg string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-tags", "netgo osusergo seccomp runc_nocriu",
		"-ldflags", "-s -w -linkmode "+map[string]string{"0": "internal", "1": "external -extldflags -static"}[cgo], "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED="+cgo)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, text)
	}
}

// look finds out what is true of this run.
func (w *world) look(t *testing.T) {
	t.Helper()
	m, err := userns.Choose()
	if err != nil {
		t.Logf("no user namespaces: %v", err)
		return
	}
	fact := func(holds bool, yes, no string) {
		if !holds {
			yes = no
		}
		w.facts = append(w.facts, yes)
	}
	fact(os.Geteuid() == 0, "root", "user")
	fact(m.Single(), "oneid", "subids")
	fact(w.backend == "native", "native", "overlayfs")
}

// lacks says why a script cannot run here, "" if it can.
func (w *world) lacks(t *testing.T, file string) string {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitN(string(text), "\n", 3)
	if !strings.HasPrefix(lines[0], "# ") {
		t.Errorf("%s: the first line does not say the promise", file)
	}
	needs, ok := strings.CutPrefix(lines[1], "# needs: ")
	if !ok {
		return ""
	}
	for need := range strings.FieldsSeq(needs) {
		if slices.Contains(w.facts, need) {
			continue
		}
		if slices.Contains([]string{"root", "user", "subids", "oneid", "overlayfs", "native"}, need) {
			return "not as this user or with this backend: needs " + need
		}
		if _, err := lookPath(need); err != nil && os.Getenv("IMG_TEST_NO_SKIP") != "" {
			t.Errorf("%s needs %s, and nothing may skip here", file, need)
		} else if err != nil {
			return "needs the program " + need + ", see make deps-test"
		}
	}
	return ""
}

func scriptName(file string) string { return strings.TrimSuffix(filepath.Base(file), ".txtar") }

// lookPath also looks where users' paths often do not lead.
func lookPath(program string) (string, error) {
	path, err := exec.LookPath(program)
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if err == nil {
			break
		}
		path, err = exec.LookPath(filepath.Join(dir, program))
	}
	return path, err
}

func (w *world) condition(cond string) (bool, error) {
	if !slices.Contains([]string{"root", "user", "subids", "oneid", "overlayfs", "native"}, cond) {
		return false, fmt.Errorf("unknown condition %q", cond)
	}
	return slices.Contains(w.facts, cond), nil
}

// setup gives a script a home and a state of its own, and looks afterwards whether anything was left behind.
func (w *world) setup(env *testscript.Env) error {
	// Beside the script's files, since these are often a build context.
	side := env.WorkDir + ".side"
	state := filepath.Join(side, "state")
	for _, v := range [][2]string{
		{"HOME", filepath.Join(side, "home")},
		{"TMPDIR", filepath.Join(side, "tmp")},
		{"XDG_RUNTIME_DIR", filepath.Join(side, "run")}, // skopeo and others keep credentials there
		{"PATH", w.bin + ":" + os.Getenv("PATH") + ":/usr/sbin:/sbin"},
		{"SIDE", side},
		{"IMG_STATE", state},
		{"IMG_BACKEND", w.backend},
		{"BUSYBOX", w.busybox},
		{"SHARED", w.shared},
		{"SOURCE", w.source},
		{"BIN", w.bin},
	} {
		env.Setenv(v[0], v[1])
	}
	for _, dir := range []string{"home", "tmp", "run"} {
		if err := os.MkdirAll(filepath.Join(side, dir), 0o755); err != nil {
			return err
		}
	}
	env.Defer(func() { w.tidy(env, side) })
	return os.Chmod(filepath.Dir(env.WorkDir), 0o755)
}

// tidy deletes what belongs to other ids, from inside, and complains about processes and mounts that outlived their commands.
func (w *world) tidy(env *testscript.Env, side string) {
	var left []string
	for range 20 { // what was killed may take 2 s to be gone
		if left = leftovers(env.WorkDir, side); len(left) == 0 {
			break
		}
		waitABit()
	}
	w.remove(env, side)
	if len(left) > 0 {
		env.T().Log("left behind:\n" + strings.Join(left, "\n"))
		env.T().FailNow()
	}
}

func (w *world) remove(env *testscript.Env, side string) {
	if err := w.removeSide(side); err != nil {
		env.T().Log(err.Error())
	}
}

// removeSide deletes a directory with a state.
func (w *world) removeSide(side string) error {
	cmd := exec.Command(filepath.Join(w.bin, "img"), "unshare", "--", "rm", "-rf", side)
	if slices.Contains(w.facts, "root") {
		cmd = exec.Command("rm", "-rf", side)
	}
	cmd.Env = os.Environ()
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("remove %s: %w\n%s", side, err, text)
	}
	return nil
}

// leftovers are the processes that know a script's state, and the mounts below its directories.
func leftovers(work, side string) []string {
	var out []string
	environs, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, f := range environs {
		text, err := os.ReadFile(f)
		if err == nil && bytes.Contains(text, []byte("IMG_STATE="+side+"/")) {
			name, _ := os.ReadFile(filepath.Join(filepath.Dir(f), "cmdline"))
			out = append(out, "process "+filepath.Base(filepath.Dir(f))+": "+string(bytes.ReplaceAll(name, []byte{0}, []byte(" "))))
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return append(out, err.Error())
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, " "+work+"/") || strings.Contains(line, " "+side+"/") {
			out = append(out, "mount "+strings.TrimSpace(line))
		}
	}
	return out
}

// writeBusybox makes the smallest useful root file system: busybox with links for its programs, and the toolbox.
func writeBusybox(file, tool string) error {
	path, err := lookPath("busybox")
	if err != nil {
		return err
	}
	names, err := exec.Command(path, "--list").Output()
	if err != nil {
		return err
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	add := func(h tar.Header, content []byte) {
		h.Size = int64(len(content))
		err = errors.Join(err, w.WriteHeader(&h))
		_, werr := w.Write(content)
		err = errors.Join(err, werr)
	}
	for _, d := range []string{"bin/", "dev/", "etc/", "home/", "proc/", "root/", "sys/", "usr/", "usr/bin/", "var/"} {
		add(tar.Header{Typeflag: tar.TypeDir, Name: d, Mode: 0o755}, nil)
	}
	add(tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}, nil)
	for name, file := range map[string]string{"bin/busybox": path, "bin/tool": tool} {
		data, rerr := os.ReadFile(file)
		err = errors.Join(err, rerr)
		add(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755}, data)
	}
	for name := range strings.FieldsSeq(string(names)) {
		if name != "busybox" {
			add(tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + name, Linkname: "busybox", Mode: 0o777}, nil)
		}
	}
	add(tar.Header{Typeflag: tar.TypeReg, Name: "etc/passwd", Mode: 0o644},
		[]byte("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"))
	add(tar.Header{Typeflag: tar.TypeReg, Name: "etc/group", Mode: 0o644}, []byte("root:x:0:\nuser:x:1000:\nstaff:x:50:user\n"))
	if err = errors.Join(err, w.Close()); err != nil {
		return err
	}
	return os.WriteFile(file, out.Bytes(), 0o644)
}
