package main

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path"
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
	s, err := layout.OpenReadOnly(filepath.Join(ts.Getenv("IMG_STATE"), "registry"))
	ts.Check(err)
	d, _, err := findImage(context.Background(), s, name)
	ts.Check(err)
	i, err := image.Load(context.Background(), s, d, image.HostPlatform())
	ts.Check(err)
	return s, i
}

func scriptTree(ts *testscript.TestScript, neg bool, args []string) {
	times := args[0] == "-t"
	s, i := scriptImage(ts, args[len(args)-1])
	files := map[string]string{}
	for _, l := range i.Layers {
		blob, err := s.Fetch(context.Background(), l.Descriptor)
		ts.Check(err)
		plain, err := image.Decompress(blob, string(l.Descriptor.MediaType))
		ts.Check(err)
		ts.Check(mergeLayer(files, plain, times))
		plain.Close()
		blob.Close()
	}
	names := make([]string, 0, len(files))
	for n := range files {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		fmt.Fprintln(ts.Stdout(), files[n])
	}
}

// mergeLayer applies a layer to a listing, by the letter of image-spec's layer.md.
func mergeLayer(files map[string]string, r io.Reader, times bool) error {
	here := map[string]bool{} // a whiteout hides lower layers alone
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		name := path.Clean("/" + h.Name)
		dir, base := path.Split(name)
		hidden, white := strings.CutPrefix(base, ".wh.")
		switch {
		case base == ".wh..wh..opq":
			hide(files, here, path.Clean(dir), false)
		case white:
			hide(files, here, dir+hidden, true)
		default:
			if h.Typeflag != tar.TypeDir {
				hide(files, here, name, false)
			}
			files[name], here[name] = listing(name, h, times), true
		}
	}
}

func hide(files map[string]string, here map[string]bool, name string, itself bool) {
	for f := range files {
		if !here[f] && (itself && f == name || strings.HasPrefix(f, strings.TrimSuffix(name, "/")+"/")) {
			delete(files, f)
		}
	}
}

var typeLetters = map[byte]string{
	tar.TypeReg: "f", tar.TypeDir: "d", tar.TypeSymlink: "l", tar.TypeLink: "h", tar.TypeChar: "c", tar.TypeBlock: "b", tar.TypeFifo: "p",
}

func listing(name string, h *tar.Header, times bool) string {
	line := fmt.Sprintf("%s %04o %d:%d %d %s", typeLetters[h.Typeflag], h.Mode&0o7777, h.Uid, h.Gid, h.Size, name)
	if times {
		line = fmt.Sprintf("%d %s", h.ModTime.Unix(), line)
	}
	if h.Linkname != "" {
		line += " -> " + h.Linkname
	}
	var attrs []string
	for k, v := range h.PAXRecords {
		if attr, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
			attrs = append(attrs, fmt.Sprintf(" %s=%x", attr, v))
		}
	}
	slices.Sort(attrs)
	return line + strings.Join(attrs, "")
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

// fixture runs a script that makes a file, once for each text of the script.
func (w *world) fixture(ts *testscript.TestScript, neg bool, args []string) {
	script := filepath.Join(w.source, "testdata", "fixtures", args[0])
	text, err := os.ReadFile(script)
	ts.Check(err)
	sum := sha256.Sum256(text)
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
