package main

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"img/registry/image"
	"img/registry/layout"
)

type scriptCommand = func(ts *testscript.TestScript, neg bool, args []string)

// commands are what scripts have besides testscript's own:
//
//	img ARGS              the program under test
//	code N COMMAND ARGS   runs a program, which must end with exit code N
//	tree [-t] IMAGE       lists the merged files of an image: type mode owner size path; -t with times
//	config IMAGE          prints the image's configuration and history, without times
//	layers IMAGE          prints the digest of the manifest and of each layer
//	same NAME             standard output must equal that of every other user's and backend's run under this name
//	fixture NAME VAR      makes testdata/fixtures/NAME unless the cache has it; VAR becomes its path
//	registry VAR [CONFIG] starts docker-registry; VAR becomes its HOST:PORT; CONFIG is more of its configuration, YAML
//	gone PATTERN SECONDS  waits until no process has PATTERN in its command line
//	web VAR DIR           serves a directory and the git repositories in it on loopback; VAR becomes its URL, DIR.log the requests;
//	                      ?to=URL is a redirection, ?token=T wants that bearer token
func (w *world) commands() map[string]scriptCommand {
	return map[string]scriptCommand{
		"img":      scriptImg,
		"code":     scriptCode,
		"tree":     scriptTree,
		"config":   scriptConfig,
		"layers":   scriptLayers,
		"same":     w.same,
		"fixture":  w.fixture,
		"registry": scriptRegistry,
		"gone":     scriptGone,
		"web":      scriptWeb,
	}
}

func waitABit() { time.Sleep(100 * time.Millisecond) }

func scriptImg(ts *testscript.TestScript, neg bool, args []string) {
	switch err := ts.Exec("img", args...); {
	case err != nil && !neg:
		ts.Fatalf("img: %v", err)
	case err == nil && neg:
		ts.Fatalf("img succeeded, and should not")
	}
}

func scriptCode(ts *testscript.TestScript, neg bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	var exit *exec.ExitError
	if err := ts.Exec(args[1], args[2:]...); errors.As(err, &exit) {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if (got == want) == neg {
		ts.Fatalf("exit code %d", got)
	}
}

// scriptImage finds an image in the script's state.
func scriptImage(ts *testscript.TestScript, name string) (*layout.Store, *image.Image) {
	s, i, err := stateImage(ts.Getenv("IMG_STATE"), name)
	ts.Check(err)
	return s, i
}

func scriptTree(ts *testscript.TestScript, neg bool, args []string) {
	times := args[0] == "-t"
	s, i := scriptImage(ts, args[len(args)-1])
	files, err := mergedFiles(s, i.Layers)
	ts.Check(err)
	for _, n := range slices.Sorted(maps.Keys(files)) {
		line := files[n].String()
		if times {
			line = fmt.Sprintf("%d %s", files[n].h.ModTime.Unix(), line)
		}
		fmt.Fprintln(ts.Stdout(), line)
	}
}

func scriptConfig(ts *testscript.TestScript, neg bool, args []string) {
	_, i := scriptImage(ts, args[0])
	var raw struct {
		Author  string          `json:"author,omitempty"`
		Config  json.RawMessage `json:"config"`
		History []struct {
			CreatedBy string `json:"created_by,omitempty"`
			Comment   string `json:"comment,omitempty"`
			Empty     bool   `json:"empty_layer,omitempty"`
		} `json:"history"`
	}
	ts.Check(json.Unmarshal(i.RawConfig, &raw))
	out := json.NewEncoder(ts.Stdout())
	out.SetEscapeHTML(false)
	out.SetIndent("", "  ")
	ts.Check(out.Encode(raw))
}

func scriptLayers(ts *testscript.TestScript, neg bool, args []string) {
	_, i := scriptImage(ts, args[0])
	fmt.Fprintln(ts.Stdout(), i.Descriptor.Digest)
	for _, l := range i.Layers {
		fmt.Fprintln(ts.Stdout(), l.Descriptor.Digest)
	}
}

// same keeps the first text under a name, and compares all others with it.
func (w *world) same(ts *testscript.TestScript, neg bool, args []string) {
	got := ts.ReadFile("stdout")
	file := filepath.Join(w.shared, args[0])
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err == nil {
		_, err = f.WriteString(got)
		ts.Check(errors.Join(err, f.Close()))
		return
	}
	want, err := os.ReadFile(file)
	ts.Check(err)
	if got != string(want) {
		ts.Fatalf("another run had\n%s\nand this one\n%s", want, got)
	}
}

// fixture runs a script that makes a file, once for each text of the script and of the files of the source that its line
// "# depends: FILE..." names.
func (w *world) fixture(ts *testscript.TestScript, neg bool, args []string) {
	script := filepath.Join(w.source, "testdata", "fixtures", args[0])
	text, err := os.ReadFile(script)
	ts.Check(err)
	all := slices.Clone(text)
	for line := range strings.Lines(string(text)) {
		names, ok := strings.CutPrefix(line, "# depends:")
		if !ok {
			continue
		}
		for _, name := range strings.Fields(names) {
			more, err := os.ReadFile(filepath.Join(w.source, name))
			ts.Check(err)
			all = append(all, more...)
		}
	}
	sum := sha256.Sum256(all)
	file := filepath.Join(w.cache, fmt.Sprintf("%s-%x", args[0], sum[:4]))
	ts.Setenv(args[1], file)
	w.fixtures.Lock()
	defer w.fixtures.Unlock()
	if _, err := os.Stat(file); err == nil {
		return
	}
	ts.Check(os.MkdirAll(w.cache, 0o755))
	cmd := exec.Command("sh", script, file)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if out, err := cmd.CombinedOutput(); err != nil {
		ts.Fatalf("fixture %s: %v\n%s", args[0], err, out)
	}
}

func scriptRegistry(ts *testscript.TestScript, neg bool, args []string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	address := l.Addr().String()
	l.Close() // the registry takes no listening socket; the port stays free for as long as nobody asks for one
	dir, err := os.MkdirTemp(ts.Getenv("TMPDIR"), "registry")
	ts.Check(err)
	config := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage:\n  filesystem: {rootdirectory: %s}\nhttp:\n  addr: %s\n", dir, address)
	if len(args) > 1 {
		config += os.Expand(ts.ReadFile(args[1]), ts.Getenv)
	}
	file := filepath.Join(dir, "config.yml")
	ts.Check(os.WriteFile(file, []byte(config), 0o644))
	program, err := lookPath("docker-registry")
	ts.Check(err)
	log, err := os.Create(filepath.Join(dir, "log"))
	ts.Check(err)
	cmd := exec.Command(program, "serve", file)
	cmd.Stdout, cmd.Stderr = log, log
	ts.Check(cmd.Start())
	ts.Defer(func() {
		cmd.Process.Kill()
		cmd.Wait()
		log.Close()
	})
	for range 100 {
		if c, err := net.Dial("tcp", address); err == nil {
			c.Close()
			ts.Setenv(args[0], address)
			return
		}
		waitABit()
	}
	text, _ := os.ReadFile(log.Name())
	ts.Fatalf("docker-registry does not answer on %s: %s", address, text)
}

func scriptGone(ts *testscript.TestScript, neg bool, args []string) {
	seconds, err := strconv.ParseFloat(args[1], 64)
	ts.Check(err)
	var left []string
	for deadline := time.Now().Add(time.Duration(seconds * float64(time.Second))); ; waitABit() {
		if left = processes(args[0]); len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("still there after %s s: %s", args[1], strings.Join(left, "; "))
		}
	}
}

// processes are the command lines that contain a text, but for our own.
func processes(pattern string) []string {
	var out []string
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		text, err := os.ReadFile(f)
		line := strings.ReplaceAll(string(text), "\x00", " ")
		if err == nil && strings.Contains(line, pattern) && filepath.Base(filepath.Dir(f)) != strconv.Itoa(os.Getpid()) {
			out = append(out, line)
		}
	}
	return out
}
