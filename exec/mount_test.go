package exec

import "testing"

// Two mounts of one cache share it as the stricter of them asks, whichever comes first.
func TestStricter(t *testing.T) {
	for _, c := range [][3]string{
		{"", "", "shared"},
		{"", "shared", "shared"},
		{"shared", "private", "private"},
		{"shared", "locked", "locked"},
		{"private", "locked", "locked"},
	} {
		if a, b := stricter(c[0], c[1]), stricter(c[1], c[0]); a != c[2] || b != c[2] {
			t.Errorf("%q and %q make %q and %q, want %q", c[0], c[1], a, b, c[2])
		}
	}
}
