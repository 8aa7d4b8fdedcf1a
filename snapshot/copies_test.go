package snapshot

import (
	"os"
	"testing"
)

// A list of directories that cannot be read is an error that keeps no descriptor.
func TestDirIndexLeak(t *testing.T) {
	count := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	st := &stage{dir: t.TempDir()}
	if err := os.WriteFile(st.path("dirs"), []byte("damaged"), 0o644); err != nil {
		t.Fatal(err)
	}
	before := count()
	for range 10 {
		if _, err := newDirIndex(st); err == nil {
			t.Fatal("a damaged list is taken")
		}
	}
	if after := count(); after > before {
		t.Errorf("%d descriptors became %d", before, after)
	}
}
