package userns

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	all      = "0 0 4294967295\n"
	rootless = "0 1000 1\n1 100000 65536\n" // what podman and rootless docker give
	image    = "0 100000 65536\n"           // what a nested builder gives
	setids   = 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID
)

func TestChoose(t *testing.T) {
	root := caller{caps: setids, uidMap: all, gidMap: all}
	ann := caller{uid: 1000, gid: 1000, name: "ann", uidMap: all, gidMap: all}
	with := func(c caller, change func(*caller)) caller { change(&c); return c }
	ids := func(s string) func(*caller) { return func(c *caller) { c.subuid, c.subgid = s, s } }
	maps := func(s string) func(*caller) { return func(c *caller) { c.uidMap, c.gidMap = s, s } }
	for _, x := range []struct {
		name       string
		c          caller
		uids, gids string // "" means the same as uids
		why        string
	}{
		{"root: highest block", root, "0 4294901758 65536", "", ""},
		{"root: own range", with(root, ids("ann:100000:65536\nroot:200000:65536\n")), "0 200000 65536", "", ""},
		{"root: own range, bigger", with(root, ids("root:200000:1000000\n")), "0 200000 65536", "", ""},
		{"root: own range too small", with(root, ids("root:200000:65535\n")), "0 4294901758 65536", "", ""},
		{"root: own range of users only", with(root, func(c *caller) { c.subuid = "root:200000:65536\n" }),
			"0 200000 65536", "0 4294901758 65536", ""},
		{"root: somebody has the top", with(root, ids("ann:4294901760:65534\n")), "0 4294836224 65536", "", ""},
		{"root: nonsense in the file", with(root, ids("x\nroot:-5:65536\nroot:a:b\nroot:0:65536\n:1:65536\n")),
			"0 4294901758 65536", "", ""},
		{"root in a container: 65,537 ids", with(root, maps(rootless)), "0 1 65536", "", ""},
		{"root in a container: 65,536 ids", with(root, maps(image)), "0 1 65535", "", ""},
		{"root in a container: others own everything",
			with(with(root, maps(rootless)), ids("podman:1:999\npodman:1001:64535\n")), "0 1 65536", "", ""},
		{"root in a container: own range is not mapped", with(with(root, maps(image)), ids("root:200000:65536\n")), "0 1 65535", "", ""},
		{"root in a container: room above nobody", with(root, maps("0 100000 200000\n")), "0 134464 65536", "", ""},
		{"root in a container: holes", with(root, maps("0 5 10\n20 40 5\n")), "0 1 9\n9 20 5", "", "only 14 ids"},
		{"root in a container: one id", with(root, maps("0 1000 1\n")), "0 0 1", "", "no ids besides"},
		{"root without capabilities", with(root, func(c *caller) { c.caps = 0 }), "0 0 1", "", "without CAP_SETUID"},

		{"user: by name", with(ann, ids("bob:1:5\nann:100000:65536\n")), "0 1000 1\n1 100000 65536", "", ""},
		{"user: by number", with(ann, ids("1000:100000:65536\n")), "0 1000 1\n1 100000 65536", "", ""},
		{"user: all ranges", with(ann, ids("ann:100000:65536\nann:300000:10\n1000:500000:5\n")),
			"0 1000 1\n1 100000 65536\n65537 300000 10\n65547 500000 5", "", ""},
		{"user: overlapping ranges", with(ann, ids("ann:100000:65536\n1000:100000:65536\nann:165530:10\n")),
			"0 1000 1\n1 100000 65536\n65537 165536 4", "", ""},
		{"user: own id in the range", with(ann, ids("ann:999:3\n")), "0 1000 1\n1 999 1\n2 1001 1", "", ""},
		{"user in a container", with(with(ann, maps(rootless)), ids("ann:1001:100000\n")), "0 1000 1\n1 1001 64536", "", ""},
		{"user: none", with(ann, ids("bob:1:5\n")), "0 1000 1", "", "/etc/subuid has no range for ann"},
		{"user: no groups", with(ann, func(c *caller) { c.subuid = "ann:100000:65536\n" }), "0 1000 1", "", "/etc/subgid has no range for ann"},
		{"user: without a name", with(ann, func(c *caller) { c.name = "" }), "0 1000 1", "", "no range for 1000"},
		{"user: no helper", with(with(ann, ids("ann:100000:65536\n")), func(c *caller) { c.helpers = "newuidmap is not installed" }),
			"0 1000 1", "", "newuidmap is not installed"},
		{"user: another group", caller{uid: 7, gid: 8, uidMap: all, gidMap: all, subuid: "7:10:5\n", subgid: "7:20:6\n"},
			"0 7 1\n1 10 5", "0 8 1\n1 20 6", ""},
	} {
		t.Run(x.name, func(t *testing.T) {
			m := choose(x.c)
			if x.gids == "" {
				x.gids = x.uids
			}
			if got := strings.TrimSpace(mapText(m.UIDs)); got != x.uids {
				t.Errorf("users %q, want %q", got, x.uids)
			}
			if got := strings.TrimSpace(mapText(m.GIDs)); got != x.gids {
				t.Errorf("groups %q, want %q", got, x.gids)
			}
			if !strings.Contains(m.Why, x.why) || (m.Why == "") != (x.why == "") {
				t.Errorf("why %q, want %q", m.Why, x.why)
			}
		})
	}
}

func TestExtentLimit(t *testing.T) {
	var sub strings.Builder
	for i := range 500 {
		fmt.Fprintf(&sub, "ann:%d:1\n", 1000+2*i)
	}
	c := caller{uid: 5, gid: 5, name: "ann", uidMap: all, gidMap: all, subuid: sub.String(), subgid: sub.String()}
	if n := len(choose(c).UIDs); n != maxExtents {
		t.Errorf("%d ranges, the kernel takes %d", n, maxExtents)
	}
}

func TestOne(t *testing.T) {
	if m := one(caller{uid: 7, gid: 8, uidMap: all, gidMap: all}); m.HostUID() != 7 || m.HostGID() != 8 || !m.Single() {
		t.Errorf("user: %+v", m)
	}
	if m := one(caller{caps: setids, uidMap: all, gidMap: all}); m.HostUID() == 0 || m.HostGID() == 0 || !m.Single() {
		t.Errorf("root: %+v", m)
	}
}

func TestMapping(t *testing.T) {
	m := Mapping{UIDs: []Range{{0, 1000, 1}, {1, 100000, 65536}}, GIDs: []Range{{0, 1000, 1}, {1, 100000, 999}, {1001, 5, 1}}}
	if m.IDs() != 1000 || m.Single() || m.HostUID() != 1000 || m.HostGID() != 1000 {
		t.Errorf("%d ids, single %v, root %d:%d", m.IDs(), m.Single(), m.HostUID(), m.HostGID())
	}
	same := Mapping{UIDs: []Range{{1, 100000, 36}, {0, 1000, 1}, {37, 100036, 65500}}, GIDs: m.GIDs, Why: "x"}
	if m.Label() != same.Label() {
		t.Errorf("equal mappings are %s and %s", m.Label(), same.Label())
	}
	other := Mapping{UIDs: m.GIDs, GIDs: m.UIDs}
	if m.Label() == other.Label() {
		t.Error("users and groups exchanged make no difference")
	}
	if !regexp.MustCompile(`^[a-z0-9-]{1,30}$`).MatchString(m.Label()) {
		t.Errorf("label %q", m.Label())
	}
	if none := (Mapping{}); none.IDs() != 0 || !none.Single() || none.HostUID() != overflowID {
		t.Errorf("no mapping: %d ids, root %d", none.IDs(), none.HostUID())
	}
}

func FuzzChoose(f *testing.F) {
	f.Add(uint32(0), all, "root:200000:65536\n")
	f.Add(uint32(0), rootless, "podman:1:999\n")
	f.Add(uint32(1000), rootless, "1000:1:9\nx:999999999999999999999:1\n1000:4294967290:100")
	f.Add(uint32(7), "0 4294967290 4294967295\n", "7:7:7\n7:1:20\n")
	f.Fuzz(func(t *testing.T, uid uint32, idMap, sub string) {
		c := caller{uid: uid, gid: uid, caps: setids, uidMap: idMap, gidMap: idMap, subuid: sub, subgid: sub}
		m := choose(c)
		if len(m.UIDs) == 0 || len(m.UIDs) > maxExtents {
			t.Fatalf("%d ranges", len(m.UIDs))
		}
		// As the kernel checks it: no id twice, neither inside nor outside.
		var outside []span
		for _, r := range m.UIDs {
			outside = append(outside, span{uint64(r.Host), uint64(r.Host) + uint64(r.Count)})
		}
		for _, side := range [][]span{outside, joinedInside(m.UIDs)} {
			var n uint64
			for _, s := range merged(side) {
				n += s.size()
			}
			if n != total(m.UIDs) {
				t.Errorf("%v maps an id twice", m.UIDs)
			}
		}
		if uid == 0 && !m.Single() && outside[0].lo == 0 {
			t.Errorf("%v maps root to itself", m.UIDs)
		}
	})
}
