package exec

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// For permissions --chmod means what chmod(1) means under umask 0.
func TestModeAsChmod(t *testing.T) {
	chmod, err := exec.LookPath("chmod")
	if err != nil {
		t.Fatal(err)
	}
	modes := []string{
		"0", "7", "644", "0755",
		"u+x", "g-w", "o=", "a+r", "+x", "-w", "=r", "=", "a=", "u=rw", "ug=rwx,o=", "go-rwx", "u=rwX,go=rX", "a+X", "a-X", "+X",
		"u=g", "g=u", "o=u", "go=u", "a=o", "u+g", "u-o", "g+u", "=u", "+g",
		"u+x-w", "u=r+x", "g=u-w", "a=rwx,u-x,g-w", "ugoa=r", "a+rr", "u+s", "g+s", "a+s", "-s",
	}
	starts := []uint32{0, 0o644, 0o755, 0o600, 0o751, 0o111, 0o20}
	for _, dir := range []bool{false, true} {
		for _, text := range modes {
			m, err := parseMode(text)
			if err != nil {
				t.Errorf("%s: %v", text, err)
				continue
			}
			want := chmodAll(t, chmod, text, starts, dir)
			for i, start := range starts {
				if got := m.apply(start, dir); got != want[i] {
					t.Errorf("chmod %s of %o (directory: %v) = %o, chmod(1): %o", text, start, dir, got, want[i])
				}
			}
		}
	}
}

// Where GNU's chmod(1) and BSD's setmode(3) part, BuildKit's library is of the latter kind: these are what it gave (dchapes-mode
// 73d941a28323; all forms of one clause were compared once, with ten modes each).
func TestModeAsBuildKit(t *testing.T) {
	for _, c := range []struct {
		text       string
		mode, want uint32
		dir        bool
	}{
		// A directory's set-id bits are cleared like others.
		{"=", 0o4755, 0, true}, {"a=r", 0o4755, 0o444, true}, {"g=rx", 0o2755, 0o755, true}, {"u=rwX,go=", 0o4755, 0o700, true},
		// Copying permissions leaves them.
		{"u=g", 0o4755, 0o4555, false}, {"go=u", 0o2755, 0o2777, false},
		// The sticky bit is any class's but others' alone, and stays unless it is named.
		{"u+t", 0, 0o1000, false}, {"g+t", 0, 0o1000, false}, {"o+t", 0, 0, false}, {"a+t", 0o644, 0o1644, false},
		{"o=", 0o1777, 0o1770, false}, {"=r", 0o1777, 0o1444, false}, {"u-t", 0o1777, 0o777, false}, {"o-t", 0o1777, 0o1777, false},
		// Without a class it is the only bit that its clause means.
		{"+xt", 0, 0o1000, false}, {"=t", 0o644, 0o1644, false}, {"-xt", 0o1755, 0o755, false},
		{"o+s", 0o644, 0o644, false}, {"uo=s", 0o1777, 0o5070, false},
		// X asks the mode before all clauses.
		{"a-x+X", 0o755, 0o755, false}, {"u-x,a+X", 0o744, 0o755, false}, {"u+x,g+X", 0o644, 0o744, false}, {"a+X", 0o600, 0o711, true},
		{"u+ug", 0o640, 0o640, false}, {"o=gx", 0o770, 0o771, false},
		{"4711", 0o2755, 0o4711, true},
	} {
		m, err := parseMode(c.text)
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
		} else if got := m.apply(c.mode, c.dir); got != c.want {
			t.Errorf("chmod %s of %o (directory: %v) = %o, want %o", c.text, c.mode, c.dir, got, c.want)
		}
	}
}

// chmodAll lets chmod(1) change a file of each mode.
func chmodAll(t *testing.T, chmod, text string, starts []uint32, dir bool) []uint32 {
	t.Helper()
	tmp := t.TempDir()
	args := []string{"-c", `umask 0; c=$1 m=$2; shift 2; exec "$c" -- "$m" "$@"`, "sh", chmod, text}
	for i, start := range starts {
		p := filepath.Join(tmp, string(rune('a'+i)))
		var err error
		if dir {
			err = os.Mkdir(p, 0o700)
		} else {
			err = os.WriteFile(p, nil, 0o600)
		}
		if err == nil {
			err = unix.Chmod(p, start)
		}
		if err != nil {
			t.Fatal(err)
		}
		args = append(args, p)
	}
	if out, err := exec.Command("/bin/sh", args...).CombinedOutput(); err != nil {
		t.Fatalf("chmod %s: %v\n%s", text, err, out)
	}
	var out []uint32
	for i := range starts {
		var st unix.Stat_t
		p := filepath.Join(tmp, string(rune('a'+i)))
		if err := unix.Lstat(p, &st); err != nil {
			t.Fatal(err)
		}
		out = append(out, st.Mode&0o7777)
		unix.Chmod(p, 0o700)
	}
	return out
}

func TestModeErrors(t *testing.T) {
	for text, want := range map[string]string{
		"10000": "the highest mode is 7777",
		"8":     "neither octal nor symbolic",
		"rwx":   "neither octal nor symbolic",
		"u+q":   `unknown permission "q"`,
		"z+x":   `unknown class 'z'`,
		"u+x,":  "neither octal nor symbolic",
	} {
		if _, err := parseMode(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}

// Directories on the way take an octal mode, but no symbolic one.
func TestModeOfParents(t *testing.T) {
	for text, want := range map[string]uint32{"": 0o755, "600": 0o600, "4711": 0o711, "u=rwx,go=": 0o755} {
		m, err := parseMode(text)
		if err != nil || m.parents() != want {
			t.Errorf("%s: %o, %v; want %o", text, m.parents(), err, want)
		}
	}
}
