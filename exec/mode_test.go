package exec

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// --chmod means what chmod(1) means under umask 0; but octal digits set a directory's set-id bits, which chmod(1) keeps.
func TestModeAsChmod(t *testing.T) {
	chmod, err := exec.LookPath("chmod")
	if err != nil {
		t.Fatal(err)
	}
	modes := []string{
		"0", "7", "644", "0755", "4755", "1777", "7777",
		"u+x", "g-w", "o=", "a+r", "+x", "-w", "=r", "=", "a=", "u=rw", "ug=rwx,o=", "go-rwx", "u=rwX,go=rX", "a+X", "a-X", "+X",
		"u+s", "g+s", "o+s", "a+s", "+s", "-s", "u-s", "g-s", "=s", "u=s", "g=rs", "o=s", "+t", "-t", "o+t", "u+t", "a+t", "=t",
		"u=g", "g=u", "o=u", "go=u", "a=o", "u+g", "u-o", "g+u", "=u", "+g",
		"u+x-w", "u=r+x", "u=rwx-x+s", "g=u-w", "a=rwx,u-x,g-w", "ugoa=r", "u+rwxXst", "a+rr",
	}
	starts := []uint32{0, 0o644, 0o755, 0o600, 0o751, 0o4755, 0o2755, 0o6711, 0o1777, 0o7777, 0o111, 0o20}
	for _, dir := range []bool{false, true} {
		for _, text := range modes {
			m, err := parseMode(text)
			if err != nil {
				t.Errorf("%s: %v", text, err)
				continue
			}
			want := chmodAll(t, chmod, text, starts, dir)
			for i, start := range starts {
				w := want[i]
				if m.octal {
					w = m.mode
				}
				if got := m.apply(start, dir); got != w {
					t.Errorf("chmod %s of %o (directory: %v) = %o, chmod(1): %o", text, start, dir, got, w)
				}
			}
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
		"u=gw":  `unknown permission "gw"`,
	} {
		if _, err := parseMode(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}

// Directories on the way take an octal mode, but no symbolic one.
func TestModeOfParents(t *testing.T) {
	for text, want := range map[string]uint32{"": 0o755, "600": 0o600, "4711": 0o4711, "u=rwx,go=": 0o755} {
		m, err := parseMode(text)
		if err != nil || m.parents() != want {
			t.Errorf("%s: %o, %v; want %o", text, m.parents(), err, want)
		}
	}
}
