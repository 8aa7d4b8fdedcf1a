package fetch

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Kinds of what is remembered.
const (
	KindHTTP = "http" // the content of a URL
	KindGit  = "git"  // a repository
	KindTemp = "temp" // a download in the making, or what a killed one left
)

// A Kept is one thing that is remembered.
type Kept struct {
	// Name is its path below the directory.
	Name string
	Kind string
	// Address is where it came from, without credentials; "" if nobody knows any more.
	Address string
	// Used is when a build last asked for it.
	Used time.Time
}

// List lists what is remembered in a directory.
func List(dir string) ([]Kept, error) {
	addresses := map[string]string{}
	err := each(dir, "urls", func(name string, _ fs.FileInfo) {
		if r := readRecord(filepath.Join(dir, name)); r != nil {
			addresses[path.Join("files", strings.TrimPrefix(r.Digest, "sha256:"))] = r.URL
		}
	})
	var out []Kept
	add := func(kind string) func(string, fs.FileInfo) {
		return func(name string, st fs.FileInfo) {
			k := Kept{Name: name, Kind: kind, Address: addresses[name], Used: st.ModTime()}
			if kind == KindGit {
				if !st.IsDir() {
					return
				}
				k.Address, k.Used = aboutRepo(filepath.Join(dir, name))
			}
			out = append(out, k)
		}
	}
	return out, errors.Join(err, each(dir, "files", add(KindHTTP)), each(dir, "git", add(KindGit)), each(dir, "tmp", add(KindTemp)))
}

// each calls f for what is in a directory below dir.
func each(dir, sub string, f func(name string, st fs.FileInfo)) error {
	entries, err := os.ReadDir(filepath.Join(dir, sub))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if st, err := e.Info(); err == nil { // else it is gone by now
			f(path.Join(sub, e.Name()), st)
		}
	}
	return nil
}

func readRecord(file string) *record {
	data, err := os.ReadFile(file)
	r := &record{}
	if err != nil || json.Unmarshal(data, r) != nil {
		return nil
	}
	return r
}

func aboutRepo(dir string) (address string, used time.Time) {
	if data, err := os.ReadFile(filepath.Join(dir, "remote")); err == nil {
		address = strings.TrimSpace(string(data))
	}
	if st, err := os.Stat(filepath.Join(dir, "lock")); err == nil {
		used = st.ModTime()
	}
	return address, used
}

// Remove forgets one thing that List told of: the records that name it first. No build may run meanwhile.
func Remove(dir, name string) error {
	kind, base := path.Split(name)
	switch {
	case base == "" || base == "." || base == "..":
		return fmt.Errorf("remove %q: nothing of that name is remembered", name)
	case kind == "files/":
		err := each(dir, "urls", func(u string, _ fs.FileInfo) {
			if r := readRecord(filepath.Join(dir, u)); r == nil || r.Digest == "sha256:"+base {
				_ = os.Remove(filepath.Join(dir, u)) // a record of nothing is no record
			}
		})
		return errors.Join(err, os.Remove(filepath.Join(dir, name)))
	case kind == "git/":
		return os.RemoveAll(filepath.Join(dir, name))
	case kind == "tmp/":
		return removeTemp(filepath.Join(dir, name))
	}
	return fmt.Errorf("remove %q: nothing of that name is remembered", name)
}

// removeTemp removes a download unless somebody writes it.
func removeTemp(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil
	}
	return os.Remove(file)
}
