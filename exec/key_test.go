package exec

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"img/cache"
	"img/dag"
	"img/exec/cdi"
	"img/exec/fetch"
	"img/exec/sshagent"
	"img/registry/image"
	"img/registry/layout"
	"img/snapshot"
)

// A keyer computes keys of vertices whose inputs are made up: two snapshots, two packed layers, two images, two contexts.
type keyer struct {
	x  *Executor
	in []cache.Output
}

func newKeyer(t *testing.T) *keyer {
	t.Helper()
	state := t.TempDir()
	snaps, err := snapshot.Open(state+"/snapshot", snapshot.Options{Map: "m"})
	if err != nil {
		t.Fatal(err)
	}
	store, err := layout.Open(state + "/registry")
	if err != nil {
		t.Fatal(err)
	}
	x := New(Options{
		State: state, Snapshots: snaps, Layout: store,
		Contexts: map[string]*Context{
			"context": open(t, makeTree(t, "a\nb\ndir/x\ndir/y\na.txt")),
			"other":   open(t, makeTree(t, "a\nb\nc\ndir/z")),
		},
		Fetch:   fetch.New(state+"/fetch", fetch.Options{}),
		Devices: map[string][]*cdi.Device{"v.com/c=d": {{Name: "v.com/c=d"}}, "v.com/c=dx": {{Name: "v.com/c=dx"}}},
		Secret:  func(id string) ([]byte, bool, error) { return []byte(id), true, nil },
	})
	k := &keyer{x: x, in: []cache.Output{"sha256:" + cache.Output(strings.Repeat("1", 64)), "sha256:" + cache.Output(strings.Repeat("2", 64))}}
	for i := range 2 {
		out, err := encode(packed{Layer: dag.Layer{DiffID: fmt.Sprint("diff", i), Digest: fmt.Sprint("digest", i)}})
		if err != nil {
			t.Fatal(err)
		}
		k.in = append(k.in, out)
	}
	for i := range 2 {
		out, err := encode(Built{Manifest: v1.Descriptor{Digest: image.Digest([]byte{byte(i)})}, Config: image.Digest(nil)})
		if err != nil {
			t.Fatal(err)
		}
		k.in = append(k.in, out)
	}
	return k
}

// text is the key of an op. An op that cannot be carried out has its error for a key.
func (k *keyer) text(op dag.Op) string {
	var h cache.Hash
	if err := k.x.Key(context.Background(), &dag.Vertex{Op: op, Platform: "linux/amd64"}, k.in, &h); err != nil {
		return "error: " + err.Error()
	}
	return h.Text()
}

// web is a server with a file for each path, and no repositories.
var web = sync.OnceValue(func() *httptest.Server {
	return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, ".git") {
			http.NotFound(w, r)
			return
		}
		io.WriteString(w, r.URL.Path)
	}))
})

func number32(n uint32) *uint32 { return &n }
func number64(n int64) *int64   { return &n }

// samples are ops whose fields all have a meaning. A mount has few fields for each type, so that each type has a sample.
func samples() map[string]dag.Op {
	run := func(m dag.Mount) *dag.Run {
		return &dag.Run{
			Base: 0, Args: []string{"sh", "-c", "make"}, Env: []string{"A=1"}, ProxyEnv: []string{"HTTP_PROXY=x"}, Dir: "/w", User: "u", Hostname: "h",
			Network: "none", Security: "insecure", Mounts: []dag.Mount{m}, Hosts: []dag.Host{{Name: "n", IP: "1.2.3.4"}},
			Devices: []dag.Device{{Name: "v.com/c=d", Required: true}}, Script: []byte("#!x"), ScriptPath: "/dev/pipes/EOF",
		}
	}
	return map[string]dag.Op{
		"image": &dag.Image{ChainID: "sha256:1", Ref: "r", Layers: []dag.Layer{{DiffID: "d", Digest: "g", Size: 1, MediaType: "m", URLs: []string{"u"}}}, Source: "s"},
		"run, bind mount": run(dag.Mount{Type: dag.MountBind, Target: "/t", From: dag.Source{Context: "context", Input: dag.Scratch}, Source: "/dir",
			ReadOnly: true}),
		"run, cache": run(dag.Mount{Type: dag.MountCache, Target: "/t", From: dag.Source{Context: "context", Input: dag.Scratch}, Source: "/dir",
			ReadOnly: true, ID: "i", Sharing: "shared", Mode: number32(7), UID: number32(8), GID: number32(9)}),
		"run, tmpfs": run(dag.Mount{Type: dag.MountTmpfs, Target: "/t", Size: 5}),
		"run, secret": run(dag.Mount{Type: dag.MountSecret, Target: "/t", ID: "i", Required: true, Env: "E", Mode: number32(7), UID: number32(8),
			GID: number32(9)}),
		"run, ssh": run(dag.Mount{Type: dag.MountSSH, Target: "/t", ID: "i", Required: true, Mode: number32(7), UID: number32(8), GID: number32(9)}),
		"copy": &dag.Copy{Base: 0, Sources: []dag.CopySource{{From: dag.Source{Context: "context", Input: dag.Scratch}, Paths: []string{"a", "dir"}, Unpack: true}},
			Files: []dag.InlineFile{{Name: "f", Data: []byte("x")}}, Dest: "/d", Chown: "1:2", Chmod: "755", Exclude: []string{"q"}},
		"merge": &dag.Merge{Base: 0, Changes: 1},
		"http":  &dag.HTTP{URL: web().URL + "/a", Name: "n"},
		"git": &dag.Git{Remote: web().URL + "/r.git", Ref: "main", Subdir: "d", KeepGitDir: true, FetchByCommit: true,
			Checksum: "0123456789012345678901234567890123456789"},
		"mkdir": &dag.Mkdir{Base: 0, Path: "/p", User: "u"},
		"pack":  &dag.Pack{Of: 0, Squash: true, Above: 0, FromContexts: []dag.Ref{0}, Compression: dag.Gzip, Docker: true, Epoch: number64(1), FromContext: true},
		"manifest": &dag.Manifest{Config: []byte("{}"), BaseHistory: 1, BaseLayers: []dag.Layer{{DiffID: "d", Digest: "g", Size: 1, MediaType: "m",
			URLs: []string{"u"}}}, Packs: []dag.Ref{2}, Docker: true, Epoch: number64(1), Annotations: map[string]string{"k": "v"},
			OmitHistory: true, Descriptor: map[string]string{"k": "v"}},
		"index": &dag.Index{Images: []dag.IndexImage{{Manifest: 4, Platform: "linux/arm64"}}, Docker: true,
			Annotations: map[string]string{"k": "v"}, Descriptor: map[string]string{"k": "v"}},
	}
}

// Every exported field of every op is in the key, unless its tag says that it does not count; so design §5.
func TestEveryFieldIsInTheKey(t *testing.T) {
	k := newKeyer(t)
	seen := map[string]bool{} // fields of mounts that some type's key has
	all := map[string]bool{}
	for name := range samples() {
		before := k.text(samples()[name])
		if strings.HasPrefix(before, "error") {
			t.Fatalf("%s: %s", name, before)
		}
		if again := k.text(samples()[name]); again != before {
			t.Fatalf("%s: the same op has two keys:\n%s\n%s", name, before, again)
		}
		for path, free := range fields(reflect.TypeOf(samples()[name]).Elem(), "", false) {
			op := sample(name, path)
			if !change(reflect.ValueOf(op).Elem(), path) {
				t.Fatalf("%s: no such field: %s", name, path)
			}
			differs := k.text(op) != k.text(sample(name, path))
			switch {
			case free && differs:
				t.Errorf("%s: %s is in the key, though its tag says no", name, path)
			case strings.HasPrefix(path, "Mounts."):
				all[path] = true
				seen[path] = seen[path] || differs
			case !free && !differs:
				t.Errorf("%s: %s is not in the key", name, path)
			}
		}
	}
	for path := range all {
		if !seen[path] {
			t.Errorf("%s is in the key of no type of mount", path)
		}
	}
}

// sample is the sample for a field. An input means something only where there is no context; the inputs here do not exist, so that the
// text is then an error that says which one was looked for.
func sample(name, path string) dag.Op {
	op := samples()[name]
	if strings.HasSuffix(path, "From.Input") {
		from := reflect.ValueOf(op).Elem()
		if list, _, ok := strings.Cut(path, "."); ok && list != "From" {
			from = from.FieldByName(list).Index(0)
		}
		from.FieldByName("From").Set(reflect.ValueOf(dag.Source{Input: 0}))
	}
	return op
}

// What a mount of each type has in the key.
func TestMountFieldsInTheKey(t *testing.T) {
	k := newKeyer(t)
	for name, fields := range map[string]string{
		"run, bind mount": "Type Target From.Context From.Input Source ReadOnly",
		"run, cache":      "Type Target From.Context From.Input Source ReadOnly ID Sharing Mode UID GID",
		"run, tmpfs":      "Type Target Size",
		"run, secret":     "Type Target ID Required Env Mode UID GID",
		"run, ssh":        "Type Target ID Required Mode UID GID",
	} {
		for _, f := range strings.Fields(fields) {
			op := sample(name, "Mounts."+f)
			change(reflect.ValueOf(op).Elem(), "Mounts."+f)
			if k.text(op) == k.text(sample(name, "Mounts."+f)) {
				t.Errorf("%s: %s is not in the key", name, f)
			}
		}
	}
}

// What a device needs is in the key, whether it is there, and whether an agent or a secret is given; what they hold is not.
func TestWhatIsGivenIsInTheKey(t *testing.T) {
	k := newKeyer(t)
	run := &dag.Run{Base: 0, Args: []string{"x"}, Dir: "/", Devices: []dag.Device{{Name: "d"}},
		Mounts: []dag.Mount{{Type: dag.MountSSH, ID: "a"}, {Type: dag.MountSecret, ID: "s"}}}
	seen := map[string]string{}
	see := func(what string) {
		t.Helper()
		if was, ok := seen[k.text(run)]; ok {
			t.Errorf("%s: the key is that of %s", what, was)
		}
		seen[k.text(run)] = what
	}
	see("a secret alone")
	k.x.o.Agents = map[string]*sshagent.Agent{"a": {}}
	see("an agent")
	k.x.o.Devices["d"] = []*cdi.Device{{Name: "d"}}
	see("a device")
	k.x.o.Devices["d"][0].Edits.Env = []string{"A=1"}
	see("a device with a variable")
	k.x.o.Devices["d"][0].Common = &cdi.Edits{Mounts: []cdi.Mount{{HostPath: "/h", ContainerPath: "/c"}}}
	see("a device with a mount")
	k.x.o.Secret = func(string) ([]byte, bool, error) { return nil, false, nil }
	see("no secret")
	before := k.text(run)
	k.x.o.Agents["a"].Socket = "/elsewhere"
	if k.text(run) != before {
		t.Error("an agent's socket is in the key")
	}
	run.Devices = []dag.Device{{Name: "none", Required: true}}
	if got := k.text(run); got != `error: required device "none" is not registered` {
		t.Errorf("a device that is not there: %s", got)
	}
}

// What a cache begins with is part of what it is; what is shown of it, its sharing and the rest are not.
func TestVolumes(t *testing.T) {
	k := newKeyer(t)
	context := func(name string) dag.Source { return dag.Source{Context: name, Input: dag.Scratch} }
	none := dag.Source{Input: dag.Scratch}
	op := &dag.Run{Args: []string{"x"}, Dir: "/", Mounts: []dag.Mount{
		{ID: "i", From: none}, {ID: "i", From: none, Source: "/sel", Target: "/x", Sharing: dag.SharingLocked, ReadOnly: true},
		{ID: "j", From: none}, {ID: "i", From: none, Mode: number32(0)}, {ID: "i", From: none, UID: number32(0)}, {ID: "i", From: none, GID: number32(0)},
		{ID: "i", From: context("context"), Source: "/dir"}, {ID: "i", From: context("context"), Source: "/missing"}, {ID: "i", From: context("other"), Source: "/dir"},
	}}
	for i := range op.Mounts {
		op.Mounts[i].Type = dag.MountCache
	}
	if text := k.text(op); strings.HasPrefix(text, "error") {
		t.Fatal(text)
	}
	same := map[int]int{1: 0, 7: 6}
	of := map[string]int{}
	for i := range op.Mounts {
		v := k.x.volume(op, i)
		first, ok := of[v]
		if want, shared := same[i]; ok != shared || first != want {
			t.Errorf("mount %d is the volume of mount %d: %v, want %v of %d", i, first, ok, shared, want)
		}
		if !ok {
			of[v] = i
		}
	}
	wants := k.x.wants(op)
	if len(wants) != len(of) || wants[0].ID != "i" || wants[len(wants)-1].ID != "j" {
		t.Errorf("wants %v", wants)
	}
	for _, w := range wants {
		if w.Volume == k.x.volume(op, 0) && w.Sharing != dag.SharingLocked {
			t.Errorf("two mounts of one volume are shared by %s", w.Sharing)
		}
	}
}

// fields lists the exported fields of a struct and of the structs in it, "A.B"; true for those whose tag takes them out of keys.
func fields(t reflect.Type, prefix string, free bool) map[string]bool {
	out := map[string]bool{}
	for i := range t.NumField() {
		f := t.Field(i)
		free, path := free || f.Tag.Get("key") == "-", prefix+f.Name
		in := f.Type
		if in.Kind() == reflect.Slice {
			in = in.Elem()
		}
		if in.Kind() != reflect.Struct {
			out[path] = free
			continue
		}
		for p, f := range fields(in, path+".", free) {
			out[p] = f
		}
	}
	return out
}

// change changes one field; of a slice of structs its first element's.
func change(v reflect.Value, path string) bool {
	name, rest, _ := strings.Cut(path, ".")
	f := v.FieldByName(name)
	if !f.IsValid() {
		return false
	}
	if rest != "" {
		if f.Kind() == reflect.Slice {
			f = f.Index(0)
		}
		return change(f, rest)
	}
	alter(f, name)
	return true
}

// alter gives a field another value of its kind. Where only some values make sense, it is one of those.
func alter(f reflect.Value, name string) {
	special := map[string]any{"Context": "other", "Source": "/a", "Type": dag.MountTmpfs, "Paths": []string{"b"}}[name]
	if special != nil && reflect.TypeOf(special) == f.Type() && !reflect.DeepEqual(special, f.Interface()) {
		f.Set(reflect.ValueOf(special))
		return
	}
	switch f.Kind() {
	case reflect.String:
		f.SetString(f.String() + "x")
	case reflect.Bool:
		f.SetBool(!f.Bool())
	case reflect.Int, reflect.Int64: // Refs, too: another input
		f.SetInt(f.Int() + 1)
	case reflect.Pointer:
		n := reflect.New(f.Type().Elem())
		if n.Elem().CanInt() {
			n.Elem().SetInt(77)
		} else {
			n.Elem().SetUint(77)
		}
		f.Set(n)
	case reflect.Map:
		f.Set(reflect.ValueOf(map[string]string{"k": "w"}))
	case reflect.Slice:
		n := reflect.MakeSlice(f.Type(), 1, 1)
		if f.Len() > 0 {
			n.Index(0).Set(f.Index(0))
		}
		alter(n.Index(0), "")
		f.Set(n)
	case reflect.Uint8:
		f.SetUint(f.Uint() + 1)
	default:
		panic("no way to change a " + f.Type().String())
	}
}
