// Command matrix runs every test as every kind of user that we may become: root, a user with subordinate ids and one
// without, and the scripts of cmd/img with overlay and with copies as well. It ends by saying which tests ran nowhere.
//
//	go run ./testdata/matrix [-run REGEXP]
//
// As root it makes the users imgtest and imgtest1 if they are missing, and keeps them. Others' tests run on a copy of
// the source that they can read.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

const tags = "netgo osusergo seccomp runc_nocriu"

// A run is the tests of some packages as one user with one backend.
type run struct {
	user     string // "" for the caller
	backend  string
	packages string
}

// The users of tests, and whether they have subordinate ids.
var users = map[string]bool{"imgtest": true, "imgtest1": false}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "as" {
		fatal(as(os.Args[2:]))
	}
	only := flag.String("run", "", "run only the tests that match")
	flag.Parse()
	m, err := prepare(*only)
	if err != nil {
		fatal(err)
	}
	code := m.all()
	os.RemoveAll(m.dir)
	os.Exit(code)
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "matrix:", err)
	os.Exit(1)
}

// A matrix is all the runs, and what came of each test.
type matrix struct {
	dir     string // what the users share: source, programs, bases
	only    string
	runs    []run
	notRun  []string // what this caller may not run
	ran     map[string]bool
	skipped map[string]string // by test: why
	failed  int
}

func prepare(only string) (*matrix, error) {
	dir, err := os.MkdirTemp("", "img-matrix-")
	if err != nil {
		return nil, err
	}
	m := &matrix{dir: dir, only: only, ran: map[string]bool{}, skipped: map[string]string{}}
	m.runs = []run{{"", "overlayfs", "./..."}, {"", "native", "./cmd/img"}}
	if err := errors.Join(os.Chmod(dir, 0o755), m.share()); err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		m.notRun = []string{"as root", "as a user whose subordinate ids are not this one's"}
		return m, nil
	}
	for name, subordinate := range users {
		if err := makeUser(name, subordinate); err != nil {
			return nil, err
		}
	}
	for _, u := range []string{"imgtest", "imgtest1"} {
		m.runs = append(m.runs, run{u, "overlayfs", "./..."}, run{u, "native", "./cmd/img"})
	}
	return m, copySource(filepath.Join(dir, "source"))
}

// share makes the directories that all runs use, and the program under test.
func (m *matrix) share() error {
	for _, d := range []string{"bin", "shared"} {
		path := filepath.Join(m.dir, d)
		if err := errors.Join(os.Mkdir(path, 0o777), os.Chmod(path, 0o1777)); err != nil {
			return err
		}
	}
	data, err := os.ReadFile("bin/img")
	if err != nil {
		return fmt.Errorf("%w (make build makes it)", err)
	}
	return os.WriteFile(filepath.Join(m.dir, "img"), data, 0o755)
}

// makeUser makes a user unless there is one, with or without subordinate ids.
func makeUser(name string, subordinate bool) error {
	if _, err := user.Lookup(name); err != nil {
		if err := command("useradd", "--create-home", "--shell", "/bin/sh", name); err != nil {
			return err
		}
	}
	for _, file := range []string{"/etc/subuid", "/etc/subgid"} {
		if err := setSubordinate(file, name, subordinate); err != nil {
			return err
		}
	}
	return nil
}

// setSubordinate gives a user a range far from those that useradd gives, or takes its ranges away.
func setSubordinate(file, name string, subordinate bool) error {
	text, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var lines []string
	for l := range strings.Lines(string(text)) {
		if !strings.HasPrefix(l, name+":") {
			lines = append(lines, l)
		}
	}
	if subordinate {
		lines = append(lines, name+":1879048192:65536\n")
	}
	if now := strings.Join(lines, ""); now != string(text) {
		return os.WriteFile(file, []byte(now), 0o644)
	}
	return nil
}

// copySource copies what git would commit.
func copySource(to string) error {
	return command("sh", "-c", `mkdir -p "$1" && git ls-files -z -co --exclude-standard | xargs -0 -r cp --parents -P -t "$1" 2>/dev/null; chmod -R a+rX "$1"`, "sh", to)
}

func command(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// all runs everything and says what happened; it returns the exit code.
func (m *matrix) all() int {
	for _, r := range m.runs {
		name := r.user
		if name == "" {
			u, err := user.Current()
			if err != nil {
				fatal(err)
			}
			name = u.Username
		}
		fmt.Printf("\n=== %s as %s, %s\n", r.packages, name, r.backend)
		if err := m.test(r); err != nil {
			m.failed++
			fmt.Println("=== FAILED:", err)
		}
	}
	return m.verdict()
}

func (m *matrix) test(r run) error {
	args := []string{"test", "-json", "-count=1", "-timeout=20m", "-tags", tags}
	if r.packages == "./cmd/img" && m.only == "" {
		args = append(args, "-run", "TestScript")
	}
	if m.only != "" {
		args = append(args, "-run", m.only)
	}
	if r.user != "" {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		top, err := os.Getwd()
		if err != nil {
			return err
		}
		args = append(args, "-exec", strings.Join([]string{self, "as", r.user, top, m.dir}, " "))
	}
	cmd := exec.Command("go", append(args, r.packages)...)
	cmd.Env = append(os.Environ(), "IMG_TEST_BACKEND="+r.backend, "IMG_TEST_SHARED="+filepath.Join(m.dir, "shared"),
		"IMG_BIN="+filepath.Join(m.dir, "img"))
	if os.Geteuid() == 0 && os.Getenv("IMG_TEST_CACHE") == "" {
		cmd.Env = append(cmd.Env, "IMG_TEST_CACHE=/var/cache/img-test")
	}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	return errors.Join(m.read(out), cmd.Wait())
}

// An event is a line of go test -json.
type event struct{ Action, Package, Test, Output string }

// read notes what became of each test, and prints packages' closing lines and whatever failed.
func (m *matrix) read(r io.Reader) error {
	output := map[string]*strings.Builder{}
	for d := json.NewDecoder(bufio.NewReader(r)); ; {
		var e event
		if err := d.Decode(&e); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		key := e.Package + " " + e.Test
		if output[key] == nil {
			output[key] = new(strings.Builder)
		}
		switch e.Action {
		case "output", "build-output":
			output[key].WriteString(e.Output)
			if e.Test == "" && !strings.Contains(e.Output, "[no test files]") && e.Output != "PASS\n" {
				fmt.Print(e.Output)
			}
		case "pass":
			m.ran[key] = true
		case "skip":
			if e.Test != "" {
				m.skipped[key] = reason(output[key].String())
			}
		case "fail":
			m.ran[key] = true
			if e.Test != "" {
				fmt.Print(withoutMarks(output[key].String()))
			}
		}
	}
}

// withoutMarks drops go test's lines about starting and pausing.
func withoutMarks(output string) string {
	var b strings.Builder
	for l := range strings.Lines(output) {
		if !strings.HasPrefix(l, "=== ") {
			b.WriteString(l)
		}
	}
	return b.String()
}

// reason is what a test said when it was skipped: its last line before "--- SKIP".
func reason(output string) string {
	lines := strings.Split(strings.TrimSpace(output), "\n")
	lines = slices.DeleteFunc(lines, func(l string) bool {
		return strings.HasPrefix(strings.TrimSpace(l), "--- SKIP") || strings.HasPrefix(l, "===")
	})
	if len(lines) == 0 {
		return ""
	}
	return strings.TrimSpace(lines[len(lines)-1])
}

func (m *matrix) verdict() int {
	var nowhere []string
	for key, why := range m.skipped {
		if !m.ran[key] {
			nowhere = append(nowhere, key+": "+why)
		}
	}
	slices.Sort(nowhere)
	fmt.Println()
	for _, n := range nowhere {
		fmt.Println("NOT RUN:", n)
	}
	for _, n := range m.notRun {
		fmt.Println("NOT RUN: anything", n)
	}
	fmt.Printf("=== %d runs, %d failed; %d tests ran somewhere, %d ran nowhere, %d kinds of user not tried\n",
		len(m.runs), m.failed, len(m.ran), len(nowhere), len(m.notRun))
	if m.failed > 0 || os.Getenv("IMG_TEST_NO_SKIP") != "" && len(nowhere)+len(m.notRun) > 0 {
		return 1
	}
	return 0
}

// as is what go test calls in place of a test program: USER TOP DIR PROGRAM ARGS. It runs a copy of the program as that
// user, in the copy of the directory that it was to run in.
func as(args []string) error {
	name, top, dir, program := args[0], args[1], args[2], args[3]
	u, err := user.Lookup(name)
	if err != nil {
		return err
	}
	here, err := os.Getwd()
	if err != nil {
		return err
	}
	rel, err := filepath.Rel(top, here)
	if err != nil {
		return err
	}
	copied := filepath.Join(dir, "bin", fmt.Sprintf("%s-%d", filepath.Base(program), os.Getpid()))
	data, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	if err := os.WriteFile(copied, data, 0o755); err != nil {
		return err
	}
	if err := os.Chdir(filepath.Join(dir, "source", rel)); err != nil {
		return err
	}
	if err := become(u); err != nil {
		return err
	}
	return syscall.Exec(copied, append([]string{copied}, args[4:]...), environment(u))
}

func become(u *user.User) error {
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return err
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return err
	}
	syscall.Umask(0o022)
	return errors.Join(syscall.Setgroups([]int{gid}), syscall.Setgid(gid), syscall.Setuid(uid))
}

// environment is a fresh login's, and what the tests are told.
func environment(u *user.User) []string {
	env := []string{"HOME=" + u.HomeDir, "USER=" + u.Username, "LOGNAME=" + u.Username, "LANG=C.UTF-8", "PATH=" + os.Getenv("PATH")}
	for _, v := range os.Environ() {
		if strings.HasPrefix(v, "IMG_") || strings.HasPrefix(v, "GOFLAGS=") || strings.HasPrefix(v, "GOPROXY=") {
			env = append(env, v)
		}
	}
	return env
}
