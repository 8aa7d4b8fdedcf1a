package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// memory is a place that keeps content by digest, and the order in which it came.
type memory struct {
	mu    sync.Mutex
	blobs map[v1.Hash][]byte
	order []v1.Hash
}

func newMemory() *memory { return &memory{blobs: map[v1.Hash][]byte{}} }

func (m *memory) put(t types.MediaType, raw []byte) v1.Descriptor {
	d := v1.Descriptor{MediaType: t, Size: int64(len(raw)), Digest: Digest(raw)}
	m.blobs[d.Digest] = raw
	return d
}

func (m *memory) putJSON(t types.MediaType, v any) v1.Descriptor {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return m.put(t, raw)
}

// image puts a one-layer image and returns its manifest's descriptor, with the platform set.
func (m *memory) image(arch, variant string) v1.Descriptor {
	layer := m.put(types.OCILayer, []byte("layer of "+arch+variant))
	img, err := Assemble(&v1.ConfigFile{OS: "linux", Architecture: arch, Variant: variant},
		[]Layer{{DiffID: layer.Digest, Descriptor: layer}}, AssembleOptions{})
	if err != nil {
		panic(err)
	}
	m.put(types.OCIConfigJSON, img.RawConfig)
	m.put(types.OCIManifestSchema1, img.RawManifest)
	return img.Descriptor
}

func (m *memory) index(ds ...v1.Descriptor) v1.Descriptor {
	raw, d, err := Index(ds, AssembleOptions{})
	if err != nil {
		panic(err)
	}
	m.put(d.MediaType, raw)
	return d
}

func (m *memory) Fetch(_ context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	raw, ok := m.blobs[d.Digest]
	if !ok {
		return nil, fmt.Errorf("blob %s: %w", d.Digest, ErrNotFound)
	}
	return io.NopCloser(bytes.NewReader(raw)), nil
}

func (m *memory) Has(_ context.Context, d v1.Descriptor) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, ok := m.blobs[d.Digest]
	return ok, nil
}

func (m *memory) Push(_ context.Context, d v1.Descriptor, r io.Reader) error {
	raw, err := io.ReadAll(Verify(r, d))
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.blobs[d.Digest] = raw
	m.order = append(m.order, d.Digest)
	return nil
}

func wantError(t *testing.T, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("unexpected error: %v", err)
	case want != "" && err == nil:
		t.Errorf("no error, want %q", want)
	case want != "" && !strings.Contains(err.Error(), want):
		t.Errorf("error %q, want %q in it", err, want)
	}
}

func TestSelect(t *testing.T) {
	m := newMemory()
	amd64, i386, armv6, armv7, arm64 := m.image("amd64", ""), m.image("386", ""), m.image("arm", "v6"), m.image("arm", "v7"), m.image("arm64", "v8")
	attestation := m.image("attestation", "")
	attestation.Platform = &v1.Platform{OS: "unknown", Architecture: "unknown"}
	bare := m.image("riscv64", "")
	bare.Platform = nil
	all := m.index(attestation, i386, armv6, armv7, arm64, amd64)
	deep := all
	for range 5 {
		deep = m.index(deep)
	}
	tests := []struct {
		name     string
		d        v1.Descriptor
		platform string
		want     v1.Descriptor
		err      string
	}{
		{"exact", all, "linux/amd64", amd64, ""},
		{"variant exact", all, "linux/arm/v6", armv6, ""},
		{"best of several variants", all, "linux/arm/v8", armv7, ""},
		{"normalized name", all, "linux/aarch64", arm64, ""},
		{"fallback", m.index(i386), "linux/amd64", i386, ""},
		{"fallback to 32 bit", m.index(armv6, armv7), "linux/arm64", armv7, ""},
		{"nested", m.index(m.index(all)), "linux/arm64", arm64, ""},
		{"without platform", m.index(bare), "linux/riscv64", bare, ""},
		{"manifest", armv6, "linux/amd64", armv6, ""},
		{"missing", all, "linux/s390x", v1.Descriptor{}, "for linux/s390x, only for linux/386, linux/amd64, linux/arm/v6, linux/arm/v7, linux/arm64: not found"},
		{"attestation alone", m.index(attestation), "linux/amd64", v1.Descriptor{}, "no platform at all"},
		{"too deep", deep, "linux/amd64", v1.Descriptor{}, "nested deeper than 4"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, err := ParsePlatform(tt.platform)
			if err != nil {
				t.Fatal(err)
			}
			got, err := Select(t.Context(), m, tt.d, p)
			wantError(t, err, tt.err)
			if got.Digest != tt.want.Digest {
				t.Errorf("selected %v, want %v", got.Platform, tt.want.Platform)
			}
		})
	}
}

func TestLoad(t *testing.T) {
	m := newMemory()
	layer := m.put(types.DockerLayer, []byte("layer"))
	config := m.putJSON(types.DockerConfigJSON, v1.ConfigFile{OS: "linux", Architecture: "amd64", RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{layer.Digest}}})
	bareConfig := m.putJSON(types.DockerConfigJSON, v1.ConfigFile{OS: "linux", Architecture: "amd64"})
	manifest := func(config v1.Descriptor, layers ...v1.Descriptor) v1.Descriptor {
		return m.putJSON(types.DockerManifestSchema2, v1.Manifest{SchemaVersion: 2, MediaType: types.DockerManifestSchema2, Config: config, Layers: layers})
	}
	raw := func(s string) v1.Descriptor { return m.put(types.OCIManifestSchema1, []byte(s)) }
	good := manifest(config, layer)
	lying := good
	lying.Size--
	absent := good
	absent.Digest.Hex = strings.Repeat("0", 64)
	chart := layer
	chart.MediaType = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"
	huge := good
	huge.Size = MaxManifest + 1
	many := make([]v1.Descriptor, MaxLayers+1)
	for i := range many {
		many[i] = layer
	}
	tests := []struct {
		name string
		d    v1.Descriptor
		err  string
	}{
		{"docker", good, ""},
		{"no layers", manifest(bareConfig), ""},
		{"absent", absent, "not found"},
		{"wrong size", lying, "longer than its size"},
		{"too big", huge, "limit is 4194304"},
		{"too many layers", manifest(config, many...), "513 layers, limit is 512"},
		{"no diff ids", manifest(bareConfig, layer), "config has 0 diff ids, manifest has 1 layers"},
		{"unknown layer", manifest(config, chart), "unknown media type"},
		{"artifact", manifest(chart, layer), "not a container image"},
		{"both", raw(`{"schemaVersion":2,"config":{},"layers":[],"manifests":[]}`), "both a manifest and an index"},
		{"neither", raw(`{"schemaVersion":2}`), "neither"},
		{"index called manifest", raw(`{"schemaVersion":2,"manifests":[]}`), "is not a manifest's"},
		{"fields do not fit", raw(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","layers":[]}`), "fields do not fit"},
		{"schema 1", raw(`{"schemaVersion":1,"fsLayers":[]}`), "schema 1 is not supported"},
		{"twice", raw(`{"schemaVersion":2,"layers":[],"layers":[]}`), `"layers" appears twice`},
		{"case", raw(`{"schemaVersion":2,"Layers":[]}`), `"Layers" should be "layers"`},
		{"null", raw(`null`), "not a JSON object"},
		{"null layers", raw(`{"schemaVersion":2,"config":null,"layers":null}`), "digest algorithm"},
		{"bad digest", raw(`{"schemaVersion":2,"config":{"digest":"sha256:../../x"},"layers":[]}`), "hash"},
		{"deep", raw(strings.Repeat("[", 1_000_000)), "not a JSON document"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Load(t.Context(), m, tt.d, Platform{})
			wantError(t, err, tt.err)
		})
	}
}

// What a configuration says of health checks, shells and triggers survives a round trip, and equal input gives equal bytes.
func TestAssemble(t *testing.T) {
	layer := v1.Descriptor{MediaType: types.DockerLayer, Size: 5, Digest: Digest([]byte("layer")), URLs: []string{"http://evil"}}
	cfg := &v1.ConfigFile{
		OS: "linux", Architecture: "amd64",
		Created: v1.Time{Time: time.Unix(1, 0).UTC()},
		History: []v1.History{{CreatedBy: "RUN <x> && y"}},
		Config: v1.Config{
			Healthcheck: &v1.HealthConfig{Test: []string{"CMD", "true"}, Interval: time.Second},
			Shell:       []string{"/bin/bash", "-c"}, OnBuild: []string{"RUN x"}, ArgsEscaped: true,
			Labels: map[string]string{"b": "2", "a": "1"}, Volumes: map[string]struct{}{"/v": {}},
		},
	}
	m := newMemory()
	m.put(types.DockerLayer, []byte("layer"))
	layers := []Layer{{DiffID: layer.Digest, Descriptor: layer}}
	for _, docker := range []bool{false, true} {
		o := AssembleOptions{Docker: docker, StartInterval: 3 * time.Second}
		a, err := Assemble(cfg, layers, o)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := Assemble(cfg, layers, o)
		if a.Descriptor.Digest != b.Descriptor.Digest {
			t.Error("equal input, different digests")
		}
		m.put(a.Manifest.Config.MediaType, a.RawConfig)
		m.put(a.Descriptor.MediaType, a.RawManifest)
		got, err := Load(t.Context(), m, a.Descriptor, Platform{})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(a, got); diff != "" {
			t.Errorf("docker=%v: %s", docker, diff)
		}
		if strings.Contains(string(a.RawConfig), "0001-01-01") || strings.Contains(string(a.RawManifest), "evil") {
			t.Errorf("config %s\nmanifest %s", a.RawConfig, a.RawManifest)
		}
	}
}

func TestChainIDs(t *testing.T) {
	a, b := Digest([]byte("a")), Digest([]byte("b"))
	got := ChainIDs([]Layer{{DiffID: a}, {DiffID: b}})
	want := []v1.Hash{a, Digest([]byte(a.String() + " " + b.String()))}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestVerify(t *testing.T) {
	d := v1.Descriptor{Size: 5, Digest: Digest([]byte("hello"))}
	negative := d
	negative.Size = -1
	for _, tt := range []struct {
		d             v1.Descriptor
		content, want string
	}{
		{d, "hello", ""},
		{d, "hell", "ends after 4 of 5 bytes"},
		{d, "hello!", "longer than its size"},
		{d, "jello", "content has digest"},
		{negative, "", "negative"},
		{v1.Descriptor{Size: 5}, "hello", "digest algorithm"},
	} {
		_, err := io.Copy(io.Discard, Verify(strings.NewReader(tt.content), tt.d))
		wantError(t, err, tt.want)
	}
}

func TestCopyOrder(t *testing.T) {
	src, dst := newMemory(), newMemory()
	a, b := src.image("amd64", ""), src.image("arm64", "")
	idx := src.index(a, b, a)
	if err := Copy(t.Context(), dst, src, idx, CopyOptions{Parallel: 2}); err != nil {
		t.Fatal(err)
	}
	if got := dst.order[4:]; !cmp.Equal(got, []v1.Hash{a.Digest, b.Digest, idx.Digest}) {
		t.Errorf("documents came in order %v", got)
	}
	delete(src.blobs, b.Digest)
	err := Copy(t.Context(), newMemory(), src, idx, CopyOptions{})
	if !errors.Is(err, ErrNotFound) {
		t.Errorf("copy of an incomplete index: %v", err)
	}
}

func TestNormalizeRef(t *testing.T) {
	digest := "@sha256:" + strings.Repeat("a", 64)
	for _, tt := range []struct{ in, full, familiar, err string }{
		{"debian", "docker.io/library/debian:latest", "debian:latest", ""},
		{"user/app:1", "docker.io/user/app:1", "user/app:1", ""},
		{"localhost:5000/app", "localhost:5000/app:latest", "localhost:5000/app:latest", ""},
		{"debian" + digest, "docker.io/library/debian" + digest, "debian" + digest, ""},
		{"debian:12" + digest, "docker.io/library/debian:12" + digest, "debian:12" + digest, ""},
		{"Debian", "", "", `image name "Debian": invalid reference format: repository name (library/Debian) must be lowercase`},
		{"", "", "", "invalid reference format"},
		{"a b", "", "", "invalid reference format"},
		{"-x", "", "", "invalid reference format"},
	} {
		full, err := NormalizeRef(tt.in)
		wantError(t, err, tt.err)
		if full != tt.full || err == nil && Familiar(full) != tt.familiar {
			t.Errorf("%q: %q, familiar %q", tt.in, full, Familiar(full))
		}
	}
}

func TestDecompress(t *testing.T) {
	gz := func(s string) string {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		io.WriteString(w, s)
		w.Close()
		return b.String()
	}
	zs := func(s string) string {
		w, _ := zstd.NewWriter(nil)
		return string(w.EncodeAll([]byte(s), nil))
	}
	bomb := zs(strings.Repeat("bomb", freeExpansion/4+1<<20))
	hole := strings.Repeat("\x00", freeExpansion+1<<20)
	for _, tt := range []struct{ name, in, want, err string }{
		{"empty", "", "", ""},
		{"plain", "plain", "plain", ""},
		{"gzip", gz("hello"), "hello", ""},
		{"gzip members", gz("hello ") + gz("world"), "hello world", ""},
		{"gzip cut", gz("hello")[:12], "", "unexpected EOF"},
		{"zstd", zs("hello"), "hello", ""},
		{"zstd frames", zs("hello ") + zs("world"), "hello world", ""},
		{"zstd skippable", "\x50\x2a\x4d\x18\x02\x00\x00\x00xx" + zs("hello"), "hello", ""},
		{"xz", "\xfd7zXZ\x00", "", "images may not use"},
		{"bomb", bomb, "", "expands more than 1000-fold"},
		{"hole, gzip", gz(hole), hole, ""},
		{"hole, zstd", zs(hole), hole, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := decompressAll(tt.in)
			wantError(t, err, tt.err)
			if err == nil && got != tt.want {
				t.Errorf("got %q", got)
			}
		})
	}
}

func decompressAll(in string) (string, error) {
	rc, err := Decompress(strings.NewReader(in), "t")
	if err != nil {
		return "", err
	}
	defer rc.Close()
	out, err := io.ReadAll(rc)
	return string(out), err
}

// Every field of a manifest and a configuration removed, null, or of a wrong type is an error or harmless, and never a panic.
func TestDamagedDocuments(t *testing.T) {
	m := newMemory()
	d := m.image("amd64", "")
	img, err := Load(t.Context(), m, d, Platform{})
	if err != nil {
		t.Fatal(err)
	}
	replacements := []any{nil, "x", 7.0, []any{}, []any{nil}, map[string]any{}, "removed"}
	for _, doc := range []struct {
		raw   []byte
		named func(damaged []byte) v1.Descriptor // the image with the damaged document
	}{
		{img.RawManifest, func(raw []byte) v1.Descriptor { return m.put(types.OCIManifestSchema1, raw) }},
		{img.RawConfig, func(raw []byte) v1.Descriptor {
			manifest := *img.Manifest
			manifest.Config = m.put(types.OCIConfigJSON, raw)
			return m.putJSON(types.OCIManifestSchema1, manifest)
		}},
	} {
		for _, with := range replacements {
			damage(t, doc.raw, with, func(where string, raw []byte) {
				got, err := Load(t.Context(), m, doc.named(raw), Platform{})
				if err == nil && len(got.Layers) != len(got.Config.RootFS.DiffIDs) {
					t.Errorf("%s = %v: layers do not match", where, with)
				}
			})
		}
	}
}

// damage calls f with the document once for each field, the field being replaced.
func damage(t *testing.T, raw []byte, with any, f func(where string, raw []byte)) {
	var root any
	if err := json.Unmarshal(raw, &root); err != nil {
		t.Fatal(err)
	}
	var walk func(v any, where string)
	walk = func(v any, where string) {
		if list, ok := v.([]any); ok {
			for i := range list {
				walk(list[i], fmt.Sprint(where, "/", i))
			}
		}
		object, _ := v.(map[string]any)
		for key, old := range object {
			if object[key] = with; with == "removed" {
				delete(object, key)
			}
			out, err := json.Marshal(root)
			if err != nil {
				t.Fatal(err)
			}
			f(where+"/"+key, out)
			object[key] = old
			walk(old, where+"/"+key)
		}
	}
	walk(root, "")
}

func FuzzManifest(f *testing.F) {
	m := newMemory()
	m.index(m.image("amd64", ""), m.image("arm", "v7"))
	for _, raw := range m.blobs {
		f.Add(raw)
	}
	f.Add([]byte(`{"schemaVersion":2,"config":null,"layers":[null]}`))
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"platform":null}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		kind, err := Kind(raw)
		if err == nil && !kind.IsImage() && !kind.IsIndex() {
			t.Fatalf("kind %q", kind)
		}
		named, _ := Children(raw)
		for _, d := range named {
			if err := verifiable(d); err != nil {
				t.Fatal(err)
			}
		}
		_, _, _ = ParseConfig(raw)
	})
}
