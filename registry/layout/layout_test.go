package layout

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"img/registry/image"
)

const app = "docker.io/library/app:1"

func newStore(t testing.TB) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "registry"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// layerTar is an empty layer but for one file.
func layerTar(name string) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: 2, Mode: 0o644})
	w.Write([]byte("hi"))
	w.Close()
	return b.Bytes()
}

func gz(data []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Write(data)
	w.Close()
	return b.Bytes()
}

func describe(t types.MediaType, raw []byte) v1.Descriptor {
	return v1.Descriptor{MediaType: t, Size: int64(len(raw)), Digest: image.Digest(raw)}
}

func put(t testing.TB, s *Store, mt types.MediaType, raw []byte) v1.Descriptor {
	t.Helper()
	d := describe(mt, raw)
	if err := s.Push(context.Background(), d, bytes.NewReader(raw)); err != nil {
		t.Fatal(err)
	}
	return d
}

// putImage puts an image with a gzip layer that holds one file.
func putImage(t testing.TB, s *Store, file string) *image.Image {
	t.Helper()
	plain := layerTar(file)
	layer := image.Layer{DiffID: image.Digest(plain), Descriptor: put(t, s, types.OCILayer, gz(plain))}
	host := image.HostPlatform()
	img, err := image.Assemble(&v1.ConfigFile{OS: host.OS, Architecture: host.Architecture, Variant: host.Variant}, []image.Layer{layer}, image.AssembleOptions{})
	if err != nil {
		t.Fatal(err)
	}
	put(t, s, types.OCIConfigJSON, img.RawConfig)
	put(t, s, img.Descriptor.MediaType, img.RawManifest)
	return img
}

func wantError(t *testing.T, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("unexpected error: %v", err)
	case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
		t.Errorf("error %v, want %q in it", err, want)
	}
}

func TestPush(t *testing.T) {
	good := describe(types.OCILayer, []byte("hello"))
	long := good
	long.Size++
	escape := good
	escape.Digest.Hex = "../../../../etc/passwd"
	for _, tt := range []struct {
		d             v1.Descriptor
		content, want string
	}{
		{good, "hello", ""},
		{good, "jello", "content has digest"},
		{good, "hell", "ends after 4 of 5"},
		{good, "hello!", "longer than its size"},
		{long, "hello", "ends after 5 of 6"},
		{escape, "hello", "wrong length"},
	} {
		s := newStore(t)
		err := s.Push(t.Context(), tt.d, strings.NewReader(tt.content))
		wantError(t, err, tt.want)
		has, _ := s.Has(t.Context(), tt.d)
		if has != (err == nil) {
			t.Errorf("%q: Has is %v", tt.content, has)
		}
		if left, _ := os.ReadDir(s.path(".tmp")); len(left) > 0 {
			t.Errorf("%q: left %v", tt.content, left)
		}
	}
}

// A blob that a power loss has cut counts as absent and is replaced.
func TestCutBlob(t *testing.T) {
	s := newStore(t)
	d := put(t, s, types.OCILayer, []byte("hello"))
	if err := os.Truncate(s.blobPath(d.Digest), 2); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Fetch(t.Context(), d); !errors.Is(err, image.ErrNotFound) {
		t.Errorf("fetch: %v", err)
	}
	put(t, s, types.OCILayer, []byte("hello"))
	if has, _ := s.Has(t.Context(), d); !has {
		t.Error("not replaced")
	}
}

func TestTags(t *testing.T) {
	ctx := t.Context()
	s := newStore(t)
	a, b := putImage(t, s, "a"), putImage(t, s, "b")
	absent := a.Descriptor
	absent.Digest.Hex = strings.Repeat("0", 64)
	if err := s.Tag(ctx, app, absent); !errors.Is(err, image.ErrNotFound) {
		t.Errorf("tag of an absent manifest: %v", err)
	}
	for _, d := range []v1.Descriptor{a.Descriptor, b.Descriptor, b.Descriptor} {
		if err := s.Tag(ctx, app, d); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Tag(ctx, "docker.io/library/zoo:1", a.Descriptor); err != nil {
		t.Fatal(err)
	}
	list, err := s.List(ctx)
	if err != nil || len(list) != 2 || list[0].Ref != app || time.Since(list[0].Updated) > time.Minute {
		t.Fatalf("list %+v, %v", list, err)
	}
	for ref, want := range map[string]v1.Descriptor{
		app:                                   b.Descriptor,
		a.Descriptor.Digest.String():          a.Descriptor,
		"x/y@" + b.Descriptor.Digest.String(): b.Descriptor,
	} {
		got, err := s.Resolve(ctx, ref)
		if err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", ref, diff)
		}
	}
	if err := s.Untag(ctx, app); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{s.Untag(ctx, app), second(s.Resolve(ctx, app)), second(s.Resolve(ctx, "")), second(s.Resolve(ctx, absent.Digest.String()))} {
		if !errors.Is(err, image.ErrNotFound) {
			t.Errorf("got %v, want ErrNotFound", err)
		}
	}
	// Found among the blobs, after the name is gone.
	got, err := s.Resolve(ctx, b.Descriptor.Digest.String())
	if err != nil || got.MediaType != types.OCIManifestSchema1 {
		t.Errorf("by digest: %+v, %v", got, err)
	}
}

func second[T any](_ T, err error) error { return err }

// Writers in several stores (as in several processes) lose no name.
func TestTagsTogether(t *testing.T) {
	s := newStore(t)
	img := putImage(t, s, "a")
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			other, err := Open(s.dir)
			if err == nil {
				err = other.Tag(t.Context(), fmt.Sprintf("docker.io/library/app:%d", i), img.Descriptor)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if list, err := s.List(t.Context()); err != nil || len(list) != 20 {
		t.Errorf("%d names, %v", len(list), err)
	}
}

// Open drops temporary files of the dead, and leaves those of the living.
func TestSweep(t *testing.T) {
	s := newStore(t)
	w, err := s.Create()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Discard()
	dead := s.path(".tmp", "blob-dead")
	if err := os.WriteFile(dead, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(s.dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dead); !os.IsNotExist(err) {
		t.Errorf("left-over of a dead writer: %v", err)
	}
	half := s.path(".tmp-half")
	if err := os.WriteFile(half, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Tag(t.Context(), app, putImage(t, s, "a").Descriptor); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(half); !os.IsNotExist(err) {
		t.Errorf("left-over of index.json: %v", err)
	}
	if _, err := w.File.WriteString("hello"); err != nil {
		t.Fatal(err)
	}
	d := describe(types.OCILayer, []byte("hello"))
	short := d
	short.Size--
	if err := w.Commit(d); err != nil {
		t.Error(err)
	}
	if err := w.Commit(short); err == nil {
		t.Error("committed twice")
	}
}

func TestBlobs(t *testing.T) {
	s := newStore(t)
	d := put(t, s, types.OCILayer, []byte("hello"))
	if err := os.WriteFile(s.path("blobs", "sha256", "README"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var got []string
	err := s.Blobs(func(h v1.Hash, size int64, used time.Time) error {
		got = append(got, fmt.Sprint(h, size))
		return nil
	})
	if want := []string{fmt.Sprint(d.Digest, 5)}; err != nil || !cmp.Equal(got, want) {
		t.Errorf("got %v, %v", got, err)
	}
	if err := s.Delete(d.Digest); err != nil {
		t.Error(err)
	}
	if err := s.Delete(d.Digest); !errors.Is(err, image.ErrNotFound) {
		t.Errorf("deleted twice: %v", err)
	}
}

func TestReadOnly(t *testing.T) {
	ctx := t.Context()
	s := newStore(t)
	img := putImage(t, s, "a")
	if err := s.Tag(ctx, app, img.Descriptor); err != nil {
		t.Fatal(err)
	}
	os.RemoveAll(s.path(".tmp"))
	ro, err := OpenReadOnly(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{"", app, "1", img.Descriptor.Digest.String()} {
		if d, err := ro.Resolve(ctx, ref); err != nil || d.Digest != img.Descriptor.Digest {
			t.Errorf("%q: %v", ref, err)
		}
	}
	wantError(t, second(ro.Resolve(ctx, "2")), "image 2: not found")
	wantError(t, ro.Untag(ctx, app), "reading only")
	wantError(t, second(ro.Create()), "reading only")
	if left, _ := os.ReadDir(s.path(".tmp")); len(left) > 0 {
		t.Error("something was written")
	}
	// A blob that is a link is refused, even to what would have the right content.
	blob := s.blobPath(img.Manifest.Config.Digest)
	os.Rename(blob, s.path("elsewhere"))
	os.Symlink(s.path("elsewhere"), blob)
	wantError(t, second(image.Load(ctx, ro, img.Descriptor, image.Platform{})), "symbolic links are not followed")
	if _, err := OpenReadOnly(t.TempDir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no layout: %v", err)
	}
}

func TestArchives(t *testing.T) {
	ctx := t.Context()
	s := newStore(t)
	a, b := putImage(t, s, "a"), putImage(t, s, "b")
	idxRaw, idx, err := image.Index([]v1.Descriptor{a.Descriptor, {MediaType: types.OCIManifestSchema1, Size: 1, Digest: image.Digest([]byte("?")), Platform: &v1.Platform{OS: "plan9", Architecture: "mips"}}}, image.AssembleOptions{})
	if err != nil {
		t.Fatal(err)
	}
	put(t, s, idx.MediaType, idxRaw)
	images := []Named{{a.Descriptor, []string{app, "example.com/x:2"}}, {b.Descriptor, nil}, {idx, []string{"docker.io/library/multi:latest"}}}
	squash := map[string]func(io.Writer) io.WriteCloser{
		"none": func(w io.Writer) io.WriteCloser { return nopCloser{w} },
		"gzip": func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) },
		"zstd": func(w io.Writer) io.WriteCloser { z, _ := zstd.NewWriter(w); return z },
		"xz":   func(w io.Writer) io.WriteCloser { z, _ := xz.NewWriter(w); return z },
	}
	for name, compress := range squash {
		for form, write := range map[string]func(context.Context, io.Writer, *Store, []Named) error{"oci": WriteOCIArchive, "docker": WriteDockerArchive} {
			t.Run(form+" "+name, func(t *testing.T) {
				var out, again bytes.Buffer
				w := compress(&out)
				if err := write(ctx, w, s, images); err != nil {
					t.Fatal(err)
				}
				w.Close()
				w = compress(&again)
				write(ctx, w, s, images)
				w.Close()
				if !bytes.Equal(out.Bytes(), again.Bytes()) {
					t.Error("equal input, different bytes")
				}
				dst := newStore(t)
				got, err := ReadArchive(ctx, &out, dst)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(images, got); diff != "" {
					t.Error(diff)
				}
				if _, err := image.Load(ctx, dst, got[2].Descriptor, image.Platform{}); err != nil {
					t.Error(err)
				}
			})
		}
	}
	os.Remove(s.blobPath(b.Layers[0].Descriptor.Digest))
	if err := WriteOCIArchive(ctx, io.Discard, s, images); !errors.Is(err, image.ErrNotFound) {
		t.Errorf("archive of an incomplete image: %v", err)
	}
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// An entry of an archive under test; link makes it a symbolic link.
type entry struct{ name, content, link string }

func makeTar(entries ...entry) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: e.name, Size: int64(len(e.content)), Mode: 0o644}
		if e.link != "" {
			h = &tar.Header{Typeflag: tar.TypeSymlink, Name: e.name, Linkname: e.link}
		}
		if strings.HasSuffix(e.name, "/") {
			h.Typeflag = tar.TypeDir
		}
		w.WriteHeader(h)
		io.WriteString(w, e.content)
	}
	w.Close()
	return b.Bytes()
}

func dockerTOC(config string, tags []string, layers ...string) string {
	raw, _ := json.Marshal([]dockerEntry{{Config: config, RepoTags: tags, Layers: layers}})
	return string(raw)
}

func configOf(diffIDs ...v1.Hash) string {
	raw, _ := json.Marshal(v1.ConfigFile{OS: "linux", Architecture: "amd64", RootFS: v1.RootFS{Type: "layers", DiffIDs: diffIDs}})
	return string(raw)
}

func TestReadArchive(t *testing.T) {
	layer := string(layerTar("f"))
	packed := string(gz([]byte(layer)))
	diffID := image.Digest([]byte(layer))
	config := configOf(diffID)
	twice := configOf(diffID, diffID)
	hex := image.Digest([]byte(config)).Hex
	toc := func(layers ...string) entry {
		return entry{"manifest.json", dockerTOC("c.json", []string{"app:1"}, layers...), ""}
	}
	conf := entry{"c.json", config, ""}
	bad := entry{"blobs/sha256/" + strings.Repeat("0", 64), "x", ""}
	tests := []struct {
		name    string
		entries []entry
		refs    []string
		err     string
	}{
		{"old docker save", []entry{{"aa/", "", ""}, {"aa/VERSION", "1.0", ""}, {"aa/json", "{}", ""}, {"aa/layer.tar", layer, ""}, conf, toc("aa/layer.tar"), {"repositories", "{}", ""}}, []string{app}, ""},
		{"same layer by a link", []entry{{"c.json", twice, ""}, {"aa/layer.tar", layer, ""}, {"bb/layer.tar", "", "../aa/layer.tar"}, toc("aa/layer.tar", "bb/layer.tar")}, []string{app}, ""},
		{"podman", []entry{{hex + ".json", config, ""}, {diffID.Hex + ".tar", layer, ""}, {"manifest.json", dockerTOC(hex+".json", nil, diffID.Hex+".tar"), ""}}, nil, ""},
		{"crane", []entry{{"sha256:" + hex, config, ""}, {"x.tar.gz", packed, ""}, {"manifest.json", dockerTOC("sha256:"+hex, []string{"example.com/a/b:2"}, "x.tar.gz"), ""}}, []string{"example.com/a/b:2"}, ""},
		{"dot slash", []entry{{"./c.json", config, ""}, {"./l.tar", layer, ""}, {"./manifest.json", dockerTOC("c.json", nil, "l.tar"), ""}}, nil, ""},
		{"toc first", []entry{toc("l.tar"), {"l.tar", layer, ""}, conf}, []string{app}, ""},
		{"odd name is ignored", []entry{conf, {"l.tar", layer, ""}, toc("l.tar"), {"passwd", "", "/etc/passwd"}}, []string{app}, ""},

		{"no toc", []entry{{"etc/passwd", "", ""}}, nil, "not an image archive"},
		{"empty", nil, nil, "not an image archive"},
		{"twice", []entry{conf, conf}, nil, "name appears twice"},
		{"up", []entry{{"../c.json", config, ""}}, nil, "leads out of the archive"},
		{"absolute", []entry{{"/c.json", config, ""}}, nil, "leads out of the archive"},
		{"toc is a link", []entry{{"manifest.json", "", "/etc/passwd"}}, nil, "not a regular file"},
		{"blob is a link", []entry{{bad.name, "", "/etc/passwd"}}, nil, "not a regular file"},
		{"layer links outside", []entry{conf, {"l.tar", "", "/etc/passwd"}, toc("l.tar")}, nil, `"l.tar" is not in the archive`},
		{"links in a ring", []entry{conf, {"a.tar", "", "b.tar"}, {"b.tar", "", "a.tar"}, toc("a.tar")}, nil, "too many links"},
		{"missing layer", []entry{conf, toc("/etc/passwd")}, nil, "not in the archive"},
		{"missing config", []entry{toc()}, nil, `config: "c.json" is not in the archive`},
		{"wrong blob", []entry{bad}, nil, "content has digest"},
		{"wrong layer", []entry{conf, {"l.tar", string(layerTar("g")), ""}, toc("l.tar")}, nil, "config says " + diffID.String()},
		{"wrong number", []entry{conf, toc()}, nil, "0 layers, config has 1 diff ids"},
		{"bad tag", []entry{{"c.json", configOf(), ""}, {"manifest.json", dockerTOC("c.json", []string{"A b"}), ""}}, nil, "invalid reference"},
		{"null toc", []entry{{"manifest.json", "[null]", ""}}, nil, "not in the archive"},
		{"index names nothing there", []entry{{"index.json", fmt.Sprintf(`{"schemaVersion":2,"manifests":[{"mediaType":%q,"size":1,"digest":"sha256:%s"}]}`, types.OCIManifestSchema1, hex), ""}}, nil, "not found"},
		{"index is a manifest too", []entry{{"index.json", `{"schemaVersion":2,"manifests":[],"layers":[]}`, ""}}, nil, "both a manifest and an index"},
		{"huge toc", []entry{{"manifest.json", strings.Repeat(" ", image.MaxManifest+1), ""}}, nil, "larger than"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newStore(t)
			got, err := ReadArchive(t.Context(), bytes.NewReader(makeTar(tt.entries...)), s)
			wantError(t, err, tt.err)
			if err != nil || tt.err != "" {
				return
			}
			img, err := image.Load(t.Context(), s, got[0].Descriptor, image.Platform{})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.refs, got[0].Refs); diff != "" {
				t.Error(diff)
			}
			if img.Layers[0].DiffID != diffID {
				t.Errorf("layers %+v", img.Layers)
			}
		})
	}
}

func FuzzReadArchive(f *testing.F) {
	layer := string(layerTar("f"))
	config := configOf(image.Digest([]byte(layer)))
	docker := makeTar(entry{"c.json", config, ""}, entry{"l.tar", layer, ""}, entry{"m.tar", "", "l.tar"}, entry{"manifest.json", dockerTOC("c.json", nil, "m.tar"), ""})
	f.Add(docker)
	f.Add(gz(docker))
	f.Add(makeTar(entry{"index.json", `{"schemaVersion":2,"manifests":[null]}`, ""}))
	s := newStore(f) // one for all: making it costs more than reading
	f.Fuzz(func(t *testing.T, raw []byte) {
		images, err := ReadArchive(t.Context(), bytes.NewReader(raw), s)
		if err != nil {
			return
		}
		for _, n := range images {
			if has, err := s.Has(t.Context(), n.Descriptor); err != nil || !has {
				t.Fatalf("%s: %v", n.Descriptor.Digest, err)
			}
		}
	})
}

// Other tools read the store by name and our archives, and we read theirs.
func TestSkopeo(t *testing.T) {
	if _, err := exec.LookPath("skopeo"); err != nil {
		t.Skip("skopeo is not installed: nobody else has looked at the store")
	}
	ctx := t.Context()
	s := newStore(t)
	img := putImage(t, s, "a")
	if err := s.Tag(ctx, app, img.Descriptor); err != nil {
		t.Fatal(err)
	}
	tmp := t.TempDir()
	skopeo(t, "copy", "oci:"+s.dir+":"+app, "docker-archive:"+tmp+"/theirs.tar:"+image.Familiar(app))
	skopeo(t, "copy", "oci:"+s.dir+":"+app, "oci-archive:"+tmp+"/theirs.oci:"+app)
	images := []Named{{img.Descriptor, []string{app}}}
	for name, write := range map[string]func(context.Context, io.Writer, *Store, []Named) error{"ours.tar": WriteDockerArchive, "ours.oci": WriteOCIArchive} {
		var b bytes.Buffer
		if err := write(ctx, &b, s, images); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(tmp, name), b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	skopeo(t, "copy", "docker-archive:"+tmp+"/ours.tar:"+image.Familiar(app), "dir:"+tmp+"/dir1")
	skopeo(t, "copy", "oci-archive:"+tmp+"/ours.oci:"+app, "dir:"+tmp+"/dir2")
	for _, name := range []string{"theirs.tar", "theirs.oci"} {
		f, err := os.Open(filepath.Join(tmp, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		dst := newStore(t)
		got, err := ReadArchive(ctx, f, dst)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		theirs, err := image.Load(ctx, dst, got[0].Descriptor, image.Platform{})
		if err != nil || theirs.Layers[0].DiffID != img.Layers[0].DiffID || !cmp.Equal(got[0].Refs, []string{app}) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func skopeo(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "skopeo", append([]string{"--insecure-policy"}, args...)...).CombinedOutput(); err != nil {
		t.Fatalf("skopeo %v: %v\n%s", args, err, out)
	}
}

// What the store notes about a name stays with it, and in the store: archives neither carry such notes nor bring them.
func TestNotes(t *testing.T) {
	ctx := context.Background()
	s := newStore(t)
	d := putImage(t, s, "file").Descriptor
	d.Annotations = map[string]string{PulledFrom: "r.example/a:1", "org.example": "kept"}
	if err := s.Tag(ctx, "docker.io/library/a:1", d); err != nil {
		t.Fatal(err)
	}
	got, err := s.Resolve(ctx, "docker.io/library/a:1")
	if err != nil || !maps.Equal(got.Annotations, d.Annotations) {
		t.Fatalf("named with %v, %v", got.Annotations, err)
	}
	var tar bytes.Buffer
	if err := WriteOCIArchive(ctx, &tar, s, []Named{{Descriptor: got, Refs: []string{"docker.io/library/a:1"}}}); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(tar.Bytes(), []byte(`"`+private)) || !bytes.Contains(tar.Bytes(), []byte("org.example")) {
		t.Error("the archive has the store's notes, or lacks the image's own")
	}
	// The same image under the same name again: nothing new to note, nothing is written.
	before, _ := os.Stat(s.path("index.json"))
	bare := d
	bare.Annotations = nil
	if err := s.Tag(ctx, "docker.io/library/a:1", bare); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.Stat(s.path("index.json")); !os.SameFile(before, after) {
		t.Error("index.json was written again")
	}
}

// What is no archive at all is called that.
func TestReadNoArchive(t *testing.T) {
	for in, want := range map[string]string{
		"":                          "the archive is empty",
		"FROM scratch\n":            "not a tar archive",
		string(gz([]byte("hello"))): "not a tar archive",
	} {
		_, err := ReadArchive(context.Background(), strings.NewReader(in), newStore(t))
		wantError(t, err, want)
	}
}
