package attr

import (
	"math"
	"testing"
)

func TestOwner(t *testing.T) {
	for _, want := range [][2]uint32{{0, 0}, {1000, 5}, {math.MaxUint32, 65534}} {
		text := FormatOwner(want[0], want[1])
		if uid, gid, ok := ParseOwner(text); !ok || uid != want[0] || gid != want[1] {
			t.Errorf("%v is written %q and read as %d:%d, %v", want, text, uid, gid, ok)
		}
	}
	for _, bad := range []string{"", "1", "1:", ":1", "1:2:3", "-1:0", "a:b", "4294967296:0", " 1:1"} {
		if uid, gid, ok := ParseOwner([]byte(bad)); ok || uid != 0 || gid != 0 {
			t.Errorf("%q was read as %d:%d", bad, uid, gid)
		}
	}
}

func TestDevice(t *testing.T) {
	for _, kind := range []byte("cb") {
		text := FormatDevice(kind, 8, math.MaxUint32)
		if k, major, minor, ok := ParseDevice(text); !ok || k != kind || major != 8 || minor != math.MaxUint32 {
			t.Errorf("%q was read as %c:%d:%d, %v", text, k, major, minor, ok)
		}
	}
	for _, bad := range []string{"", "c", "c:", "c:1", "d:1:2", "1:2", "c:1:2:3", "cc:1:2", "c1:2"} {
		if _, _, _, ok := ParseDevice([]byte(bad)); ok {
			t.Errorf("%q was read", bad)
		}
	}
}

// The attributes are on files that a hostile image may have brought along.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"0:0", "1000:1000", "4294967295:1", "4294967296:1", "-1:2", ":", "c:1:2", "b:0:4294967295", "c1:2", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if uid, gid, ok := ParseOwner([]byte(text)); ok {
			if u, g, ok := ParseOwner(FormatOwner(uid, gid)); !ok || u != uid || g != gid {
				t.Errorf("%q is %d:%d, then %d:%d", text, uid, gid, u, g)
			}
		}
		if kind, major, minor, ok := ParseDevice([]byte(text)); ok {
			if k, a, i, ok := ParseDevice(FormatDevice(kind, major, minor)); !ok || k != kind || a != major || i != minor {
				t.Errorf("%q is %c:%d:%d, then %c:%d:%d", text, kind, major, minor, k, a, i)
			}
		}
	})
}
