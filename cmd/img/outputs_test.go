package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Where a result is to go is looked at before the build, and named when it cannot.
func TestCheckDests(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "file"), "")
	os.Mkdir(filepath.Join(dir, "dir"), 0o755)
	os.Symlink("dir", filepath.Join(dir, "link"))
	os.Symlink("nowhere", filepath.Join(dir, "dangling"))
	for _, c := range []struct{ args, says string }{
		{"-o dir", ""},
		{"-o link", ""},
		{"-o new/er", ""},
		{"-o file", "-o type=local: file is not a directory"},
		{"-o file/in", "-o type=local: file/in: not a directory"},
		{"-o dangling", "-o type=local: dangling is a link to what is not there"},
		{"-o type=tar,dest=file", ""},
		{"-o type=tar,dest=dangling", ""},
		{"-o type=tar,dest=/dev/null", ""},
		{"-o type=tar,dest=dir", "-o type=tar: dir is a directory"},
		{"-o type=oci,dest=no/x.tar", "-o type=oci: there is no directory no"},
		{"-o type=oci,dest=no/x,tar=false", ""},
		{"-o type=docker,dest=file,tar=false", "-o type=docker: file is not a directory"},
		{"-o type=cacheonly", ""},
		{"--iidfile no/x", "--iidfile: there is no directory no"},
		{"--metadata-file dir", "--metadata-file: dir is a directory"},
	} {
		t.Run(c.args, func(t *testing.T) {
			t.Chdir(dir)
			_, err := parse(t, nil, append([]string{"build", "."}, strings.Fields(c.args)...)...)
			if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("%v, want %q", err, c.says)
			}
		})
	}
}

// A file appears whole or not at all, a link is replaced, and what is no file stays what it is.
func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	hello := func(w io.Writer) error { _, err := io.WriteString(w, "hello"); return err }
	text := func(name string) string { b, _ := os.ReadFile(at(name)); return string(b) }

	write(t, at("target"), "kept")
	os.Symlink("target", at("link"))
	if err := writeFile(at("link"), hello); err != nil || text("link") != "hello" || text("target") != "kept" {
		t.Errorf("through a link: %v, %q, %q", err, text("link"), text("target"))
	}
	broken := func(w io.Writer) error { hello(w); return syscall.ENOSPC }
	if err := writeFile(at("target"), broken); !errors.Is(err, syscall.ENOSPC) || text("target") != "kept" {
		t.Errorf("a full disk: %v, %q", err, text("target"))
	}
	if err := writeFile(at("no/x"), hello); err == nil || strings.Contains(err.Error(), ".img-") {
		t.Errorf("no directory: %v", err)
	}
	os.Symlink("/dev/null", at("null"))
	if err := writeFile(at("null"), hello); err != nil {
		t.Errorf("through a link to a device: %v", err)
	}
	if to, _ := os.Readlink(at("null")); to != "/dev/null" {
		t.Errorf("the link to a device leads to %q", to)
	}
	syscall.Mkfifo(at("fifo"), 0o600)
	got := make(chan string)
	go func() { b, _ := os.ReadFile(at("fifo")); got <- string(b) }()
	if err := writeFile(at("fifo"), hello); err != nil || <-got != "hello" {
		t.Errorf("a FIFO: %v", err)
	}
	if left, _ := filepath.Glob(at(".img-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// Where a result found no room, the hint is about its own file system and not the state's.
func TestFullDest(t *testing.T) {
	home := t.TempDir()
	os.Chmod(home, 0o700)
	g := &Globals{State: home, getenv: func(string) string { return "" }}
	full := &os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}
	if h := hint(fullDest(g, "/proc/none/x.tar", full), g); !strings.Contains(h, "the file system of /proc has") || strings.Contains(h, "prune") {
		t.Errorf("elsewhere: %q", h)
	}
	if h := hint(fullDest(g, filepath.Join(home, "x.tar"), full), g); !strings.Contains(h, home) || !strings.Contains(h, "prune") {
		t.Errorf("beside the state: %q", h)
	}
	if h := hint(&os.PathError{Op: "write", Path: "/proc/x", Err: syscall.ENOSPC}, g); !strings.Contains(h, "the file system of /proc has") || strings.Contains(h, "prune") {
		t.Errorf("a path elsewhere: %q", h)
	}
	if h := hint(&os.PathError{Op: "write", Path: "/dev/stdout", Err: syscall.ENOSPC}, g); h != "where standard output goes there is no room" {
		t.Errorf("standard output: %q", h)
	}
	if err := fullDest(g, "/proc/none", os.ErrExist); err != os.ErrExist {
		t.Errorf("another error: %v", err)
	}
}

// Only options that say how to build have short names in the environment.
func TestShortNames(t *testing.T) {
	env := map[string]string{"IMG_TAG": "v1", "IMG_TARGET": "prod", "IMG_OUTPUT": "x", "IMG_SECRET": "hush", "IMG_JOBS": "3"}
	r, err := parse(t, env, "build", ".")
	if err != nil || len(r.Tags) > 0 || len(r.Outputs) > 0 || len(r.Secrets) > 0 {
		t.Errorf("%+v, %v", r, err)
	}
	env["IMG_BUILD_TAG"] = "v2"
	if r, err := parse(t, env, "build", "."); err != nil || strings.Join(r.Tags, " ") != "docker.io/library/v2:latest" {
		t.Errorf("%+v, %v", r, err)
	}
}
