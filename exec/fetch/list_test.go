package fetch

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"img/dag"
)

func TestListAndRemove(t *testing.T) {
	dir := t.TempDir()
	if list, err := List(dir); err != nil || len(list) != 0 {
		t.Fatal(list, err)
	}
	s := serve(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "x") })
	f := newForge(t, false)
	f.commit("r", "a=1")
	get(t, New(dir, Options{}), s.URL+"/f?s3cret")
	g := &dag.Git{Remote: strings.Replace(f.url("r"), "://", "://u:s3cret@", 1)}
	if _, _, err := fetched(t, New(dir, Options{}), g); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "tmp", "url-dead"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	list, err := List(dir)
	if err != nil || len(list) != 3 {
		t.Fatal(list, err)
	}
	for i, want := range []Kept{{Kind: KindHTTP, Address: s.URL + "/f?…"}, {Kind: KindGit, Address: f.url("r")}, {Kind: KindTemp}} {
		k := list[i]
		if k.Kind != want.Kind || k.Address != want.Address || time.Since(k.Used) > time.Minute {
			t.Errorf("%+v; want %+v", k, want)
		}
		if err := Remove(dir, k.Name); err != nil {
			t.Error(err)
		}
	}
	if list, err := List(dir); err != nil || len(list) != 0 {
		t.Error(list, err)
	}
	if names, err := os.ReadDir(filepath.Join(dir, "urls")); err != nil || len(names) != 0 {
		t.Error(names, err)
	}
	get(t, New(dir, Options{}), s.URL+"/f?s3cret")
	if got, _, err := fetched(t, New(dir, Options{}), g); err != nil || got != "a 644 1" {
		t.Error(got, err)
	}
	for _, name := range []string{"", "files", "files/..", "git/.", "../x", "urls/x", "git/../../x", "/etc/x"} {
		if err := Remove(dir, name); err == nil {
			t.Errorf("%q was removed", name)
		}
	}
}

// A download that somebody writes stays.
func TestRemoveRunning(t *testing.T) {
	dir := t.TempDir()
	d := &download{c: New(dir, Options{})}
	if err := d.create(); err != nil {
		t.Fatal(err)
	}
	defer d.close()
	if err := Remove(dir, "tmp/"+filepath.Base(d.file.Name())); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(d.file.Name()); err != nil {
		t.Error(err)
	}
}
