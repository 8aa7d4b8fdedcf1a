package snapshot

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// After a reboot, a snapshot whose files are as its tree says is used; one with a file that lost its end is not, and a new commit of
// the same content takes its place.
func TestBoot(t *testing.T) {
	dir := t.TempDir()
	open := func(boot string) *Store {
		t.Helper()
		s, err := Open(dir, Options{Map: "m", Driver: Copies, Scratch: t.TempDir(), Boot: boot})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	commit := func(s *Store, content string) Name {
		t.Helper()
		a, err := s.Prepare(context.Background(), "")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(a.Root(), "f"), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		n, err := a.Commit(context.Background(), CommitOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	first := open("boot 1")
	whole, cut := commit(first, "whole"), commit(first, "cut")
	h, err := cut.hex()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(dir, "m", h, "fs", "f"), 0); err != nil {
		t.Fatal(err)
	}
	if s := open("boot 1"); !s.Has(cut) {
		t.Error("in the same run, files are not compared")
	}
	second := open("boot 2")
	if !second.Has(whole) {
		t.Error("a whole snapshot is not used after a reboot")
	}
	if second.Has(cut) {
		t.Error("a snapshot with a cut file is used after a reboot")
	}
	if again := commit(second, "cut"); again != cut || !second.Has(cut) {
		t.Errorf("the same content committed again is %s, not %s, or is not there", again, cut)
	}
	noted, err := os.ReadFile(filepath.Join(dir, "m", h, bootFile))
	if err != nil || string(noted) != "boot 2\n" {
		t.Errorf("the run is noted as %q: %v", noted, err)
	}
}

// A check that waits for another one finds its note, and leaves alone what was made from the files since.
func TestBootSideBySide(t *testing.T) {
	dir := t.TempDir()
	open := func(boot string) *Store {
		t.Helper()
		s, err := Open(dir, Options{Map: "m", Driver: Copies, Scratch: t.TempDir(), Boot: boot})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	a, err := open("boot 1").Prepare(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	n, err := a.Commit(t.Context(), CommitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	h, err := n.hex()
	if err != nil {
		t.Fatal(err)
	}
	at, block := filepath.Join(dir, "m", h), filepath.Join(dir, "m", "merged", h)
	faster, err := flockDir(at)
	if err != nil {
		t.Fatal(err)
	}
	slower, done := open("boot 2"), make(chan bool)
	go func() { done <- slower.Has(n) }()
	select {
	case <-done:
		t.Error("two checks at once")
	case <-time.After(100 * time.Millisecond): // it cannot be seen that it waits
	}
	if err := writeFile(at, bootFile, "boot 2\n"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(block, 0o755); err != nil {
		t.Fatal(err)
	}
	faster.Close()
	if !<-done {
		t.Error("a whole snapshot is not used")
	}
	if _, err := os.Lstat(block); err != nil {
		t.Errorf("the block that was just made is gone: %v", err)
	}
}
