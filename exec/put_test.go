package exec

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"img/snapshot"
)

// Whoever stops a build does not wait for the end of a huge file: neither its digest nor its copy.
func TestHugeFilesEndWithContext(t *testing.T) {
	dir := t.TempDir()
	huge := filepath.Join(dir, "huge")
	if err := os.WriteFile(huge, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(huge, 1<<40); err != nil { // sparse: minutes of reading
		t.Fatal(err)
	}
	stopped := errors.New("stopped")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(stopped)
	err := open(t, dir).walk("huge", func(e snapshot.Entry, c content) error {
		if _, err := digestOf(ctx, c); !errors.Is(err, stopped) {
			t.Errorf("digest: %v", err)
		}
		tg := testTarget(t, nil)
		tg.ctx = ctx
		if _, err := tg.put("copy", e, c); !errors.Is(err, stopped) {
			t.Errorf("copy: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
