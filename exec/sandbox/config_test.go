package sandbox

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/opencontainers/runc/libcontainer/configs"
)

// hostWithAll is a host that lacks nothing.
var hostWithAll = Facts{
	TTYGroup: true, CgroupNS: true, HostSysfs: true, FreshSysfs: true, RecursiveReadOnly: true, NoFile: 1 << 20,
	Capabilities: []string{"CAP_CHOWN", "CAP_SYS_ADMIN"},
}

// Every flag of a Spec and every lack of a host shows in the configuration; the filter has files of its own.
func TestConfig(t *testing.T) {
	plain := Spec{ID: "step", Root: "/root", Args: []string{"true"}, Network: "host"}
	with := func(change func(*Spec)) Spec { s := plain; change(&s); return s }
	lacking := func(change func(*Facts)) Facts { f := hostWithAll; change(&f); return f }
	for _, test := range []struct {
		name string
		spec Spec
		host Facts
	}{
		{"host", plain, hostWithAll},
		{"none", with(func(s *Spec) { s.Network = "none" }), hostWithAll},
		{"none-without-sysfs", with(func(s *Spec) { s.Network = "none" }), lacking(func(f *Facts) { f.FreshSysfs = false })},
		{"insecure", with(func(s *Spec) { s.Insecure = true }), hostWithAll},
		{"oneid", with(func(s *Spec) { s.OneID = true }), lacking(func(f *Facts) { f.TTYGroup, f.AptConf = false, "/state/apt.conf" })},
		{"old-host", plain, Facts{HostSysfs: true, NoFile: 1024}},
		{"mounts", with(func(s *Spec) {
			s.Hostname, s.ShmSize = "name", 1<<20
			s.Mounts = []Mount{
				{Type: "bind", Source: "/src", Target: "/a"},
				{Type: "bind", Source: "/src", Target: "/b", ReadOnly: true, NoExec: true, NoDev: true, NoSuid: true},
				{Type: "tmpfs", Target: "/c"},
				{Type: "tmpfs", Target: "/d", Size: 4096, Mode: 0o700},
			}
		}), hostWithAll},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, err := config(test.spec, test.host)
			if err != nil {
				t.Fatal(err)
			}
			c.Seccomp = nil
			text, err := json.MarshalIndent(c, "", "\t")
			must(err)
			golden(t, "config-"+test.name+".json", string(text)+"\n")
		})
	}
}

func TestConfigErrors(t *testing.T) {
	for _, s := range []Spec{
		{Root: "/root", Network: "bridge"},
		{Root: "/root"},
		{Root: "/root", Network: "host", Mounts: []Mount{{Type: "overlay", Target: "/x"}}},
	} {
		if _, err := config(s, hostWithAll); err == nil {
			t.Errorf("no error for %+v", s)
		}
	}
}

// The filter, a line a call.
func TestFilter(t *testing.T) {
	for _, test := range []struct {
		name string
		spec Spec
		host Facts
	}{
		{"default", Spec{}, Facts{}},
		{"compat32", Spec{Compat32: true}, Facts{}},
		{"oneid", Spec{OneID: true}, Facts{Listener: "/socket"}},
		{"oneid-old", Spec{OneID: true}, Facts{}},
		{"insecure-oneid", Spec{OneID: true, Insecure: true}, Facts{Listener: "/socket"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, err := filter(test.spec, test.host)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, fmt.Sprintf("filter-%s-%s.txt", test.name, runtime.GOARCH), filterText(c))
		})
	}
	if c, err := filter(Spec{Insecure: true}, Facts{}); c != nil || err != nil {
		t.Errorf("an insecure process has a filter: %v, %v", c, err)
	}
}

func filterText(c *configs.Seccomp) string {
	var b strings.Builder
	fmt.Fprintf(&b, "default %d architectures %v listener %q\n", c.DefaultAction, c.Architectures, c.ListenerPath)
	for _, call := range c.Syscalls {
		fmt.Fprintf(&b, "%s %d", call.Name, call.Action)
		if call.ErrnoRet != nil {
			fmt.Fprintf(&b, " errno %d", *call.ErrnoRet)
		}
		for _, a := range call.Args {
			fmt.Fprintf(&b, " arg%d op%d %#x %#x", a.Index, a.Op, a.Value, a.ValueTwo)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func TestExitErrorText(t *testing.T) {
	for want, e := range map[string]ExitError{
		"exit code: 3":                         {Code: 3},
		"ended by signal 9 (killed)":           {Code: 137, Signal: 9},
		`exec: "x": permission denied`:         {Code: 126, Msg: `exec: "x": permission denied`},
		"ended by signal 15 (terminated)":      {Code: 143, Signal: 15},
		"ended by signal 31 (bad system call)": {Code: 159, Signal: 31},
	} {
		if got := e.Error(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
		if kind, data := e.WireKind(); kind != "exit" || data != any(&e) {
			t.Errorf("%v crosses as %s %v", e, kind, data)
		}
	}
}

func TestMapped(t *testing.T) {
	file := filepath.Join(t.TempDir(), "map")
	must(os.WriteFile(file, []byte("         0     100000          5\n         5     1000          1\n10 1 x\n\n"), 0o644))
	for id, want := range map[uint64]bool{0: true, 4: true, 5: true, 6: false, 10: false, 1 << 40: false} {
		if mapped(file, id) != want {
			t.Errorf("mapped(%d) is %v", id, !want)
		}
	}
}
