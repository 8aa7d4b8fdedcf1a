package cdi

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// write makes a directory of specifications.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const gpu = `# as generators write it
---
cdiVersion: 0.5.0
kind: "vendor.com/gpu"
annotations:
  org.mobyproject.buildkit.device.class: gpu.class
devices:
- name: "0"
  annotations: {org.mobyproject.buildkit.device.autoallow: "true"}
  containerEdits:
    deviceNodes:
    - path: /dev/gpu0   # the first
      hostPath: /dev/null
      permissions: rw
      fileMode: 0666
- name: one
  containerEdits: {"env": ['A=it''s', "B=x: y"], additionalGids: [4, 5]}
containerEdits:
    env:
        - ALL=void
    mounts:
        -   hostPath: /usr/lib/lib.so
            containerPath: /usr/lib/lib.so
            options: [ro, nosuid, nodev, bind]
`

func names(devices []*Device) string {
	var out []string
	for _, d := range devices {
		out = append(out, d.Name)
	}
	return strings.Join(out, " ")
}

func TestFind(t *testing.T) {
	r := Load(write(t, map[string]string{"gpu.yaml": gpu, "ignored.txt": "{"}), "/none",
		write(t, map[string]string{"x.json": `{"cdiVersion":"0.6.0","kind":"other.org/x","devices":[{"name":"a","containerEdits":{"env":["X=1"]}}],"containerEdits":{}}`}))
	if len(r.Broken) > 0 {
		t.Fatal(r.Broken)
	}
	for name, want := range map[string]string{
		"vendor.com/gpu=one": "vendor.com/gpu=one", "vendor.com/gpu": "vendor.com/gpu=0", "vendor.com/gpu=*": "vendor.com/gpu=0 vendor.com/gpu=one",
		"gpu.class": "vendor.com/gpu=0 vendor.com/gpu=one", "other.org/x": "other.org/x=a", "vendor.com/gpu=two": "", "vendor.com/gp": "", "": "",
		"/dev/null": "", "vendor.com/gpu=": "vendor.com/gpu=0",
	} {
		if got := names(r.Find(name)); got != want {
			t.Errorf("%q stands for %q, want %q", name, got, want)
		}
	}
	merged := Merge(append(r.Find("vendor.com/gpu=*"), r.Find("vendor.com/gpu")...))
	text, err := json.Marshal(merged)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"env":["ALL=void","A=it's","B=x: y"],"deviceNodes":[{"path":"/dev/gpu0","hostPath":"/dev/null","fileMode":438,"permissions":"rw"}],` +
		`"mounts":[{"hostPath":"/usr/lib/lib.so","containerPath":"/usr/lib/lib.so","options":["ro","nosuid","nodev","bind"]}],"additionalGids":[4,5]}`
	if string(text) != want {
		t.Errorf("merged\n%s\nwant\n%s", text, want)
	}
}

// A later directory goes first; in one directory, what two files describe is nobody's.
func TestConflicts(t *testing.T) {
	one := func(env string) string {
		return fmt.Sprintf(`{"cdiVersion":"0.6.0","kind":"v.com/c","devices":[{"name":"d","containerEdits":{"env":[%q]}}],"containerEdits":{}}`, env)
	}
	r := Load(write(t, map[string]string{"a.json": one("X=1")}), write(t, map[string]string{"a.json": one("X=2")}))
	if found := r.Find("v.com/c=d"); len(found) != 1 || found[0].Edits.Env[0] != "X=2" || len(r.Broken) > 0 {
		t.Errorf("found %v, broken %v", found, r.Broken)
	}
	r = Load(write(t, map[string]string{"a.json": one("X=1"), "b.json": one("X=2")}))
	if found := r.Find("v.com/c=d"); len(found) > 0 || len(r.Broken) != 1 || !strings.Contains(r.Broken[0].Error(), "b.json: v.com/c=d is described by ") {
		t.Errorf("found %v, broken %v", found, r.Broken)
	}
}

func TestAllowed(t *testing.T) {
	r := Load(write(t, map[string]string{"gpu.yaml": gpu}))
	for _, x := range []struct{ grants, name, want string }{
		{"", "vendor.com/gpu=0", "vendor.com/gpu=0"}, // by its annotation
		{"", "vendor.com/gpu=one", "device vendor.com/gpu=one is requested by the build but not allowed"},
		{"vendor.com/gpu=one", "vendor.com/gpu=*", "vendor.com/gpu=0 vendor.com/gpu=one"},
		{"vendor.com/gpu=*", "vendor.com/gpu=one", "vendor.com/gpu=one"},
		{"vendor.com/gpu", "vendor.com/gpu=one", "device vendor.com/gpu=one is requested by the build but not allowed"},
		{"gpu.class", "vendor.com/gpu=one", "vendor.com/gpu=one"},
		{"vendor.com/gpu=one,alias=mine", "mine", "vendor.com/gpu=one"},
		{"", "mine", ""},
		{"ALL", "vendor.com/gpu=one", "vendor.com/gpu=one"},
	} {
		var g Grants
		if g.All = x.grants == "ALL"; !g.All && x.grants != "" {
			if err := g.Add(x.grants); err != nil {
				t.Fatal(err)
			}
		}
		found, err := r.Allowed(x.name, g)
		got := names(found)
		if err != nil {
			got = err.Error()
		}
		if got != x.want {
			t.Errorf("--allow device=%s, %s: %q, want %q", x.grants, x.name, got, x.want)
		}
	}
	if err := (&DeniedError{[]string{"a", "b"}}).Error(); err != "devices a, b are requested by the build but not allowed" {
		t.Error(err)
	}
	for _, bad := range []string{"", "a,b", "a,alias", "a,alias=", "a,x=y"} {
		if err := new(Grants).Add(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestUnserved(t *testing.T) {
	for edits, want := range map[string]string{
		`"hooks":[{"hookName":"createContainer","path":"/usr/bin/ctk"}]`:                "its createContainer hook would run /usr/bin/ctk on the host",
		`"netDevices":[{"hostInterfaceName":"e","name":"f"}]`:                           "network devices",
		`"intelRdt":{"closID":"x"}`:                                                     "resource class",
		`"mounts":[{"hostPath":"/a","containerPath":"/b","type":"tmpfs"}]`:              `of type "tmpfs"`,
		`"mounts":[{"hostPath":"/a","containerPath":"/b","options":["upperdir=/x"]}]`:   `option "upperdir=/x", which is not understood`,
		`"mounts":[{"hostPath":"/a","containerPath":"/b","options":["ro","rprivate"]}]`: "",
		`"netDevices":null,"intelRdt":null`:                                             "",
	} {
		d, err := parse([]byte(`{"cdiVersion":"1.1.0","kind":"v.com/c","devices":[{"name":"d","containerEdits":{`+edits+`}}],"containerEdits":{}}`), false)
		if err != nil {
			t.Fatal(err)
		}
		err = d[0].Unserved()
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", edits, err, want)
		}
	}
}

func TestBadSpecs(t *testing.T) {
	for text, want := range map[string]string{
		`{}`:                                `cdiVersion "" is not known`,
		`{"cdiVersion":"9.0.0"}`:            `cdiVersion "9.0.0" is not known`,
		`{"cdiVersion":"0.5.0","kind":"c"}`: `kind "c" is not of the form`,
		`{"cdiVersion":"0.5.0","kind":"v/c","x":1}`:                                                               `unknown field "x"`,
		`{"cdiVersion":"0.5.0","kind":"v/c","devices":[{"name":"a b"}]}`:                                          `device name "a b" is not valid`,
		`{"cdiVersion":"0.5.0","kind":"v/c","containerEdits":{"env":["x"]}}`:                                      `env "x" is not of the form`,
		`{"cdiVersion":"0.5.0","kind":"v/c","containerEdits":{"deviceNodes":[{"path":"x"}]}}`:                     `path "x" is no absolute path`,
		`{"cdiVersion":"0.5.0","kind":"v/c","containerEdits":{"deviceNodes":[{"path":"/x","permissions":"q"}]}}`:  `permissions "q"`,
		`{"cdiVersion":"0.5.0","kind":"v/c","containerEdits":{"mounts":[{"hostPath":"/x","containerPath":"/"}]}}`: `containerPath "/" is no absolute path`,
		`{"cdiVersion":"0.5.0","kind":"v/c"} {}`:                                                                  `more follows`,
	} {
		if _, err := parse([]byte(text), false); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}

func TestYAML(t *testing.T) {
	for text, want := range map[string]string{
		"a: {b: [1, \"2\"]}":               `{"a":{"b":[1,"2"]}}`,
		"mode: 0660\nversion: 0.5.0\nn: ~": `{"mode":432,"n":null,"version":"0.5.0"}`, // 0660 is octal, as in YAML 1.1
		"---\na: &x [/dev/a]\nb: *x\n":     "line 3: an alias",
		"a: 1\na: 2":                       `line 2: mapping key "a" already defined at line 1`,
		"a: 1\n---\nb: 2":                  "more than one document",
		"a: [":                             "line 1: did not find expected node content",
		"1: a":                             "json: unsupported type",
		"# nothing":                        "it is empty",
	} {
		got, err := toJSON([]byte(text))
		if err != nil {
			got = []byte(err.Error())
		}
		if !strings.Contains(string(got), want) {
			t.Errorf("%q is %s, want %s", text, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(gpu), true)
	f.Add([]byte(`{"cdiVersion":"0.6.0","kind":"other.org/x","devices":[{"name":"a","containerEdits":{"env":["X=1"]}}],"containerEdits":{}}`), false)
	for _, s := range []string{"a: [1, {b: 'c'}]", "- - x\n  - y: z", "\"\\x41\": ~", "a: &b", ":", "- :", "? a", "a:\n- b\n -c"} {
		f.Add([]byte(s), true)
	}
	f.Fuzz(func(t *testing.T, text []byte, isYAML bool) {
		devices, err := parse(text, isYAML)
		if err != nil {
			return
		}
		for _, d := range devices {
			if !kindForm.MatchString(strings.SplitN(d.Name, "=", 2)[0]) {
				t.Errorf("name %q", d.Name)
			}
			_ = d.Unserved()
		}
		Merge(devices)
	})
}
