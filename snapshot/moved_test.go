package snapshot_test

import (
	"testing"

	"img/snapshot"
	"img/snapshot/snapshottest"
)

// With one id, links and pipes take their owners along when they are renamed; what is only similar gets none.
func TestMovedOwners(t *testing.T) {
	base := func(p string, _ uint64) (uid, gid uint32, ok bool) {
		switch p {
		case "one", "p", "d/e/in", "keep":
			return 5, 6, true
		case "two":
			return 7, 8, true
		}
		return 0, 0, false
	}
	asked := func(p string, _ uint64) (uid, gid uint32, ok bool) { return 0, 0, p == "keep" || p == "f/e/in" }
	for _, c := range []struct {
		script, want string
		owner        func(string, uint64) (uint32, uint32, bool)
	}{
		{script: "mv one new", want: "l new 5:6 -> x\nx one\n"},
		{script: "mv one zero", want: "x one\nl zero 5:6 -> x\n"},
		{script: "mv p q", want: "x p\np q 5:6\n"},
		{script: "cp -a one copy", want: "l copy -> x\n"},
		{script: "rm one; ln -s x new", want: "l new -> x\nx one\n"},
		{script: "mv one new; ln -s y one", want: "l new 5:6 -> x\nl one -> y\n"},
		{script: "mv two one", want: "l one 7:8 -> x\nx two\n"},
		{script: "cp -a d f; rm -r d", owner: asked, want: "x d\nd f\nd f/e\nl f/e/in 5:6 -> x\n"},
		{script: "cp -a d/e/in in; rm -r d; mkdir -p d/e", want: "x d/e/in\nl in 5:6 -> x\n"},
		{script: "touch -hd @9 keep", want: "l keep -> x\n", owner: asked},
	} {
		for _, driver := range []string{snapshot.Overlay, snapshot.Copies} {
			s, err := snapshot.Open(t.TempDir(), snapshot.Options{Map: "test", IDs: 1, Driver: driver, Scratch: t.TempDir()})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			n := snapshottest.Step(t, s, "", snapshot.CommitOptions{Owner: base}, snapshottest.Script(
				"mkdir -p d/e; mkfifo p; ln -s x one; ln -s x two; ln -s x keep; ln -s x d/e/in; touch -hd @1 one; touch -hd @2 two; touch -hd @3 d/e/in; touch -hd @4 keep"))
			n = snapshottest.Step(t, s, n, snapshot.CommitOptions{Times: snapshot.TimesNever, Owner: c.owner}, snapshottest.Script(c.script))
			got := snapshottest.Tree(t, s, n)
			if got != c.want {
				t.Errorf("%s: %s: tree is\n%swant\n%s", driver, c.script, got, c.want)
			}
		}
	}
}
