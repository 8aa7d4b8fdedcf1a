package cache

import "testing"

// A build with nothing to do is made of Gets.
func BenchmarkGet(b *testing.B) {
	s, err := Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	var h Hash
	for i := range 30 {
		h.Line("copied", i, "some/path/of/a/file.go", "file", 0o644, 0, 0)
	}
	if err := s.Put(Record{Key: h.Key(), Output: "x", Text: h.Text()}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, ok := s.Get(h.Key()); !ok {
			b.Fatal("miss")
		}
	}
}
