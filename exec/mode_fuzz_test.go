package exec

import "testing"

// Whatever --chmod says, a mode that comes out has no bits but those of a mode, and nothing panics.
func FuzzMode(f *testing.F) {
	for _, seed := range []string{"", "644", "7777", "10000", "u+x,go=r", "a=rwX", "+t", "u=g-w+s", "u+ug", "=", ",", "u", "é+x", "u+x,"} {
		f.Add(seed, uint32(0o644))
	}
	f.Fuzz(func(t *testing.T, text string, mode uint32) {
		m, err := parseMode(text)
		if err != nil {
			return
		}
		for _, dir := range []bool{false, true} {
			if got := m.apply(mode&0o7777, dir); got&^0o7777 != 0 {
				t.Errorf("%q makes %o", text, got)
			}
		}
		if m.parents()&^0o777 != 0 {
			t.Errorf("%q makes parents of mode %o", text, m.parents())
		}
	})
}
