package registry

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"img/registry/image"
	"img/registry/registrytest"
)

const (
	user   = "ada"
	secret = "s3cr3t"
)

// client makes a client with short waits, which has credentials for the hosts.
func client(t testing.TB, o Options, hosts ...string) *Client {
	t.Helper()
	if len(hosts) > 0 {
		o.Keychain = NewKeychain(storeAuth(t, hosts...), func(string) string { return "" })
	}
	c := New(o)
	c.backoff = time.Millisecond
	t.Cleanup(c.CloseIdle)
	return c
}

func storeAuth(t testing.TB, hosts ...string) string {
	t.Helper()
	var entries []string
	for _, h := range hosts {
		entries = append(entries, fmt.Sprintf(`%q:{"auth":%q}`, h, base64.StdEncoding.EncodeToString([]byte(user+":"+secret))))
	}
	return writeFile(t, "auth.json", `{"auths":{`+strings.Join(entries, ",")+`}}`)
}

func writeFile(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func wantError(t *testing.T, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("unexpected error: %v", err)
	case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
		t.Errorf("error %v, want %q in it", err, want)
	}
	if err != nil && strings.Contains(err.Error(), secret) {
		t.Errorf("error tells the password: %v", err)
	}
}

// content is an image in memory; it implements image.Fetcher with a reader that can seek.
type content struct {
	image *image.Image
	layer []byte
	blobs map[v1.Hash][]byte
}

type seekCloser struct{ *bytes.Reader }

func (seekCloser) Close() error { return nil }

func (c *content) Fetch(_ context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	raw, ok := c.blobs[d.Digest]
	if !ok {
		return nil, image.ErrNotFound
	}
	return seekCloser{bytes.NewReader(raw)}, nil
}

func newContent(t testing.TB) *content {
	t.Helper()
	layer := make([]byte, 300_000)
	rand.Read(layer)
	d := v1.Descriptor{MediaType: types.OCILayer, Size: int64(len(layer)), Digest: image.Digest(layer)}
	img, err := image.Assemble(&v1.ConfigFile{OS: "linux", Architecture: "amd64"}, []image.Layer{{DiffID: d.Digest, Descriptor: d}}, image.AssembleOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return &content{img, layer, map[v1.Hash][]byte{
		d.Digest: layer, img.Descriptor.Digest: img.RawManifest, img.Manifest.Config.Digest: img.RawConfig,
	}}
}

// push pushes and tags.
func push(c *Client, ref string, from *content, mountFrom ...string) error {
	r, err := c.Repository(ref, mountFrom...)
	if err != nil {
		return err
	}
	if err := image.Copy(context.Background(), r, from, from.image.Descriptor, image.CopyOptions{Parallel: 1}); err != nil {
		return err
	}
	return c.Tag(context.Background(), ref, from.image.Descriptor, from.image.RawManifest)
}

// pull resolves and reads everything, and compares it with what was pushed.
func pull(c *Client, ref string, want *content) error {
	ctx := context.Background()
	d, err := c.Resolve(ctx, ref)
	if err != nil {
		return err
	}
	if d.Digest != want.image.Descriptor.Digest || d.Size != want.image.Descriptor.Size || d.MediaType != want.image.Descriptor.MediaType {
		return fmt.Errorf("resolved %+v, want %+v", d, want.image.Descriptor)
	}
	r, err := c.Repository(ref)
	if err != nil {
		return err
	}
	img, err := image.Load(ctx, r, d, image.Platform{})
	if err != nil {
		return err
	}
	rc, err := r.Fetch(ctx, img.Layers[0].Descriptor)
	if err != nil {
		return err
	}
	defer rc.Close()
	_, err = io.Copy(io.Discard, image.Verify(rc, img.Layers[0].Descriptor))
	return err
}

func TestPushPull(t *testing.T) {
	for _, auth := range []string{"none", "basic", "bearer"} {
		t.Run(auth, func(t *testing.T) {
			reg, img := registrytest.New(t), newContent(t)
			if auth != "none" {
				reg.User, reg.Password = user, secret
			}
			if auth == "bearer" {
				reg.Realm = "self"
			}
			c := client(t, Options{}, reg.Host())
			ref := reg.Host() + "/team/app:1"
			if err := push(c, ref, img); err != nil {
				t.Fatal(err)
			}
			if err := pull(c, ref, img); err != nil {
				t.Error(err)
			}
			if err := pull(c, reg.Host()+"/team/app@"+img.image.Descriptor.Digest.String(), img); err != nil {
				t.Error(err)
			}
			_, err := c.Resolve(t.Context(), reg.Host()+"/team/app:2")
			if !errors.Is(err, image.ErrNotFound) {
				t.Errorf("absent tag: %v", err)
			}
			if auth == "none" {
				return
			}
			_, err = client(t, Options{}).Resolve(t.Context(), ref)
			wantError(t, err, "401 Unauthorized: UNAUTHORIZED: authentication required (no credentials are stored for it)")
			var e *Error
			if !errors.As(err, &e) || !e.Unauthorized() {
				t.Errorf("not an unauthorized *Error: %v", err)
			}
		})
	}
}

// Faults that pass are survived; those that do not are told, without waiting for long.
func TestPullFaults(t *testing.T) {
	lie := registrytest.Content([]byte("not what was asked for"))
	for _, tt := range []struct {
		name  string
		fault func(*registrytest.Registry) registrytest.Fault
		err   string
	}{
		{"cut once", func(r *registrytest.Registry) registrytest.Fault {
			return registrytest.Times(1, registrytest.On("GET", "/blobs/", r.Cut(100_000)))
		}, ""},
		{"cut five times", func(r *registrytest.Registry) registrytest.Fault {
			return registrytest.Times(5, registrytest.On("GET", "/blobs/", r.Cut(1000)))
		}, ""},
		{"cut always", func(r *registrytest.Registry) registrytest.Fault {
			return registrytest.On("GET", "/blobs/", r.Cut(1000))
		}, "broke off 6 times"},
		{"busy once", func(r *registrytest.Registry) registrytest.Fault {
			return registrytest.Times(1, registrytest.Status(429, http.Header{"Retry-After": {"1"}}))
		}, ""},
		{"busy for an hour", func(r *registrytest.Registry) registrytest.Fault {
			return registrytest.Status(429, http.Header{"Retry-After": {"3600"}})
		}, "429 Too Many Requests"},
		{"ill five times", func(r *registrytest.Registry) registrytest.Fault {
			return registrytest.Times(5, registrytest.Status(500, nil))
		}, ""},
		{"ill", func(r *registrytest.Registry) registrytest.Fault { return registrytest.Status(503, nil) }, "503 Service Unavailable"},
		{"forbidden", func(r *registrytest.Registry) registrytest.Fault { return registrytest.Status(403, nil) }, "403 Forbidden: FAULT: on demand"},
		{"no HEAD", func(r *registrytest.Registry) registrytest.Fault {
			return registrytest.On("HEAD", "", registrytest.Status(405, nil))
		}, ""},
		{"wrong manifest", func(r *registrytest.Registry) registrytest.Fault { return registrytest.On("GET", "/manifests/", lie) }, "broke off 6 times, last after 22 of"},
		{"wrong blob", func(r *registrytest.Registry) registrytest.Fault { return registrytest.On("GET", "/blobs/", lie) }, "registry sent range"},
		{"redirects in a ring", func(r *registrytest.Registry) registrytest.Fault {
			return registrytest.On("GET", "/blobs/", registrytest.Redirect(r.Server.URL+"/blobs/"))
		}, "more than 10 redirects"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			reg, img := registrytest.New(t), newContent(t)
			c, ref := client(t, Options{}), reg.Host()+"/app:1"
			if err := push(c, ref, img); err != nil {
				t.Fatal(err)
			}
			reg.Inject(tt.fault(reg))
			err := pull(c, ref, img)
			if tt.name == "wrong blob" && err != nil { // by range, by size or by digest: it must fail
				return
			}
			wantError(t, err, tt.err)
		})
	}
}

func TestPushFaults(t *testing.T) {
	for _, tt := range []struct {
		name  string
		fault registrytest.Fault
		err   string
	}{
		{"upload fails once", registrytest.Times(1, registrytest.On("PUT", "/blobs/uploads/", registrytest.Status(502, nil))), ""},
		{"session is lost", registrytest.Times(1, registrytest.On("PUT", "/blobs/uploads/", registrytest.Status(404, nil))), ""},
		{"start fails once", registrytest.Times(1, registrytest.On("POST", "", registrytest.Status(503, nil))), ""},
		{"quota", registrytest.On("PUT", "/blobs/uploads/", registrytest.Status(413, nil)), "413"},
		{"manifest refused", registrytest.On("PUT", "/manifests/", registrytest.Status(400, nil)), "400 Bad Request: FAULT"},
		{"manifest kept under another digest", registrytest.On("PUT", "/manifests/", func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Docker-Content-Digest", "sha256:"+strings.Repeat("0", 64))
			w.WriteHeader(201)
			return true
		}), "registry kept the manifest as"},
		{"no place", registrytest.On("POST", "", func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(202); return true }), "names no place"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			reg, img := registrytest.New(t), newContent(t)
			reg.Inject(tt.fault)
			c, ref := client(t, Options{}), reg.Host()+"/app:1"
			err := push(c, ref, img)
			wantError(t, err, tt.err)
			if err == nil {
				wantError(t, pull(c, ref, img), "")
			}
		})
	}
}

// What is pushed is verified on the way: a damaged blob is never finished.
func TestPushWrongContent(t *testing.T) {
	reg, img := registrytest.New(t), newContent(t)
	img.blobs[image.Digest(img.layer)] = append([]byte("x"), img.layer[1:]...)
	c := client(t, Options{})
	wantError(t, push(c, reg.Host()+"/app:1", img), "content has digest")
	r, _ := c.Repository(reg.Host() + "/app")
	if has, err := r.Has(t.Context(), img.image.Layers[0].Descriptor); has || err != nil {
		t.Errorf("the registry has it: %v, %v", has, err)
	}
}

// The second push sends no blob; a push beside it mounts.
func TestMountAndSkip(t *testing.T) {
	reg, img := registrytest.New(t), newContent(t)
	c := client(t, Options{})
	puts := func() (n int) {
		for _, r := range reg.Requests() {
			if r.Method == "PUT" && strings.Contains(r.Path, "/blobs/") {
				n++
			}
		}
		return n
	}
	for range 2 {
		if err := push(c, reg.Host()+"/a:1", img); err != nil {
			t.Fatal(err)
		}
	}
	if puts() != 2 {
		t.Errorf("%d uploads, want 2", puts())
	}
	reg.Inject(registrytest.On("HEAD", "/v2/b/blobs/", registrytest.Status(404, nil)))
	if err := push(c, reg.Host()+"/b:1", img, reg.Host()+"/a", "example.com/a"); err != nil {
		t.Fatal(err)
	}
	mounts := 0
	for _, r := range reg.Requests() {
		if strings.Contains(r.Query, "mount=") && strings.Contains(r.Query, "from=a") {
			mounts++
		}
	}
	if mounts != 2 {
		t.Errorf("%d mounts asked for, want 2", mounts)
	}
	wantError(t, pull(c, reg.Host()+"/b:1", img), "")
}

// The password reaches nobody but the registry it is stored for.
func TestCredentialsStay(t *testing.T) {
	for _, tt := range []struct {
		name   string
		setUp  func(reg, evil *registrytest.Registry) Options
		reach  bool // evil may see them
		expect string
	}{
		{"foreign realm", func(reg, evil *registrytest.Registry) Options {
			reg.Realm = evil.Server.URL + "/token"
			return Options{}
		}, false, "its credentials were withheld from the token server"},
		{"listed realm", func(reg, evil *registrytest.Registry) Options {
			reg.Realm = evil.Server.URL + "/token"
			return Options{Realms: []string{evil.Host()}}
		}, true, ""},
		{"redirect of a blob", func(reg, evil *registrytest.Registry) Options {
			reg.Inject(registrytest.On("GET", "/blobs/", registrytest.Redirect(evil.Server.URL+"/x")))
			return Options{}
		}, false, "/x: 401"},
		{"upload elsewhere", func(reg, evil *registrytest.Registry) Options {
			reg.Inject(registrytest.On("POST", "", func(w http.ResponseWriter, _ *http.Request) bool {
				w.Header().Set("Location", evil.Server.URL+"/v2/app/blobs/uploads/1")
				w.WriteHeader(http.StatusAccepted)
				return true
			}))
			return Options{}
		}, false, "push"},
		{"no realm", func(reg, evil *registrytest.Registry) Options { reg.Realm = "nonsense"; return Options{} }, false, "no usable token server"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			reg, evil, img := registrytest.New(t), registrytest.New(t), newContent(t)
			for _, r := range []*registrytest.Registry{reg, evil} {
				r.User, r.Password = user, secret
			}
			evil.User = user
			c := client(t, tt.setUp(reg, evil), reg.Host())
			err := push(c, reg.Host()+"/app:1", img)
			if err == nil {
				err = pull(c, reg.Host()+"/app:1", img)
			}
			if tt.expect != "" {
				wantError(t, err, tt.expect)
			}
			seen := false
			for _, r := range evil.Requests() {
				seen = seen || r.Authorization != "" || strings.Contains(r.Body+r.Query, secret)
			}
			if seen != tt.reach {
				t.Errorf("evil saw credentials: %v; %+v", seen, evil.Requests())
			}
		})
	}
}

func TestTrusts(t *testing.T) {
	for _, tt := range []struct {
		scheme, host, realm string
		want                bool
	}{
		{"https", "registry.example.com", "https://registry.example.com/token", true},
		{"https", "registry.example.com", "http://registry.example.com/token", false},
		{"https", "registry.gitlab.com", "https://gitlab.com/jwt/auth", true},
		{"https", "registry.gitlab.com", "http://gitlab.com/jwt/auth", false},
		{"https", "registry-1.docker.io", "https://auth.docker.io/token", true},
		{"https", "a.github.io", "https://b.github.io/token", false}, // different owners
		{"https", "a.co.uk", "https://b.co.uk/token", false},
		{"https", "example.com", "https://example.com.evil.org/token", false},
		{"https", "example.com", "https://example.com@evil.org/token", false},
		{"http", "localhost:5000", "http://localhost:5000/token", true},
		{"http", "localhost:5000", "http://localhost:5001/token", false},
		{"https", "10.0.0.1", "https://10.0.0.1:8443/token", false},
		{"https", "registry.example.com", "https://localhost/token", false},
	} {
		h := &host{client: New(Options{}), addr: tt.host, scheme: tt.scheme}
		req, err := http.NewRequest("GET", tt.realm, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := h.trusts(req.URL); got != tt.want {
			t.Errorf("%s at %s: %v, want %v", tt.host, tt.realm, got, tt.want)
		}
	}
}

func TestIdentityToken(t *testing.T) {
	reg, img := registrytest.New(t), newContent(t)
	reg.User, reg.Password, reg.Realm = user, secret, "self"
	file := writeFile(t, "auth.json", fmt.Sprintf(`{"auths":{%q:{"identitytoken":%q}}}`, reg.Host(), secret))
	c := client(t, Options{Keychain: NewKeychain(file, func(string) string { return "" })})
	wantError(t, push(c, reg.Host()+"/app:1", img), "")
}

// Login believes only an answer that the password was needed for, and gives it to nobody else.
func TestLogin(t *testing.T) {
	for _, c := range []struct {
		name, password, realm string
		want                  string
	}{
		{"basic", secret, "", ""},
		{"basic, wrong", "guess", "", "401 Unauthorized: UNAUTHORIZED: authentication required (the credentials for it were refused)"},
		{"token", secret, "self", ""},
		{"token, wrong", "guess", "self", "(the credentials for it were refused)"},
		{"token of another host", secret, "http://127.0.0.1:1/token", "refused"},
	} {
		t.Run(c.name, func(t *testing.T) {
			reg := registrytest.New(t)
			reg.User, reg.Password, reg.Realm = user, secret, c.realm
			keys, err := OneCredential(reg.Host(), user, c.password)
			if err != nil {
				t.Fatal(err)
			}
			wantError(t, client(t, Options{Keychain: keys}).Login(t.Context(), reg.Host()), c.want)
		})
	}
	t.Run("a token without the password", func(t *testing.T) {
		reg, tokens := registrytest.New(t), registrytest.New(t)
		tokens.User, tokens.Password = user, secret
		reg.User, reg.Password, reg.Realm = user, secret, tokens.Server.URL+"/token"
		keys, err := OneCredential(reg.Host(), user, secret)
		if err != nil {
			t.Fatal(err)
		}
		err = client(t, Options{Keychain: keys}).Login(t.Context(), reg.Host())
		wantError(t, err, "withheld from the token server")
		for _, r := range tokens.Requests() {
			if r.Authorization != "" {
				t.Errorf("%s got the password", r.Host)
			}
		}
	})
}

// Loopback may speak plain HTTP; a certificate that nobody knows is never waved through but by Insecure or CAFile.
func TestTLS(t *testing.T) {
	reg, img := registrytest.NewTLS(t), newContent(t)
	ref := reg.Host() + "/app:1"
	wantError(t, push(client(t, Options{}), ref, img), "certificate")
	wantError(t, push(client(t, Options{Insecure: []string{reg.Host()}}), ref, img), "")
	ca := writeFile(t, "ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: reg.Server.Certificate().Raw})))
	wantError(t, pull(client(t, Options{CAFile: ca}), ref, img), "")
	wantError(t, pull(client(t, Options{CAFile: writeFile(t, "no.pem", "x")}), ref, img), "no certificate in it")

	plain := registrytest.New(t)
	reg.Inject(registrytest.On("GET", "/blobs/", registrytest.Redirect(plain.Server.URL+"/x")))
	wantError(t, pull(client(t, Options{CAFile: ca}), ref, img), "refused to follow a redirect from https")
}

func TestCancel(t *testing.T) {
	reg := registrytest.New(t)
	hang := make(chan struct{})
	defer close(hang)
	reg.Inject(registrytest.On("HEAD", "", func(http.ResponseWriter, *http.Request) bool { <-hang; return true }))
	reason := errors.New("the user pressed a key")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(20*time.Millisecond, func() { cancel(reason) })
	if _, err := client(t, Options{}).Resolve(ctx, reg.Host()+"/app:1"); !errors.Is(err, reason) {
		t.Errorf("got %v", err)
	}
}

func TestKeychain(t *testing.T) {
	auth := base64.StdEncoding.EncodeToString([]byte(user + ":" + secret))
	entry := func(key string) string { return fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, key, auth) }
	helpers := t.TempDir()
	for name, script := range map[string]string{
		"good":    `read server; echo "{\"Username\":\"ada\",\"Secret\":\"` + secret + `\",\"ServerURL\":\"$server\"}"`,
		"none":    `echo "credentials not found in native keychain"; exit 1`,
		"broken":  `echo ` + secret + `; exit 3`,
		"garbage": `echo ` + secret,
		"huge":    `head -c 1048576 /dev/zero`,
	} {
		if err := os.WriteFile(filepath.Join(helpers, "docker-credential-"+name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", helpers+":"+os.Getenv("PATH"))
	for _, tt := range []struct {
		name, file, host, repo string
		found                  bool
		err                    string
	}{
		{"host", entry("example.com"), "example.com", "a/b", true, ""},
		{"url", entry("https://example.com/v2/"), "example.com", "a/b", true, ""},
		{"other port", entry("example.com:5000"), "example.com", "a/b", false, ""},
		{"other host", entry("example.com.evil.org"), "example.com", "a/b", false, ""},
		{"suffix", entry("ample.com"), "example.com", "a/b", false, ""},
		{"path", entry("example.com/a"), "example.com", "a/b", true, ""},
		{"half a path element", entry("example.com/a"), "example.com", "ab/c", false, ""},
		{"other path", entry("example.com/x"), "example.com", "a/b", false, ""},
		{"longest path", fmt.Sprintf(`{"auths":{"example.com":{"auth":"eDp5"},"example.com/a/b":{"auth":%q},"example.com/a":{"auth":"eDp5"}}}`, auth), "example.com", "a/b", true, ""},
		{"hub", entry("https://index.docker.io/v1/"), "docker.io", "library/debian", true, ""},
		{"hub's name elsewhere", entry("https://index.docker.io/v1/"), "example.com", "library/debian", false, ""},
		{"helper", `{"credHelpers":{"example.com":"good"}}`, "example.com", "a", true, ""},
		{"helper by wildcard", `{"credHelpers":{"*.example.com":"good"}}`, "eu.example.com", "a", true, ""},
		{"helper for another", `{"credHelpers":{"example.com":"good"}}`, "example.org", "a", false, ""},
		{"store", `{"credsStore":"good"}`, "example.org", "a", true, ""},
		{"store has none, auths has", `{"credsStore":"none",` + entry("example.com")[1:], "example.com", "a", true, ""},
		{"helper is missing", `{"credsStore":"absent"}`, "example.com", "a", false, "docker-credential-absent"},
		{"helper fails", `{"credsStore":"broken"}`, "example.com", "a", false, "exit status 3"},
		{"helper prints garbage", `{"credsStore":"garbage"}`, "example.com", "a", false, "answer is not JSON"},
		{"helper prints for ever", `{"credsStore":"huge"}`, "example.com", "a", false, "longer than"},
		{"helper is a path", `{"credsStore":"../../bin/sh"}`, "example.com", "a", false, "not a path"},
		{"garbage", "{" + secret, "example.com", "a", false, "not a JSON auth file"},
		{"bad base64", `{"auths":{"example.com":{"auth":"` + secret + `!"}}}`, "example.com", "a", false, "not the base64"},
		{"null", `{"auths":null,"credHelpers":null}`, "example.com", "a", false, ""},
		{"empty entry", `{"auths":{"example.com":{}}}`, "example.com", "a", false, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := NewKeychain(writeFile(t, "auth.json", tt.file), func(string) string { return "" })
			c, err := k.find(t.Context(), tt.host, tt.repo)
			wantError(t, err, tt.err)
			if found := c == (credential{user: user, password: secret}); found != tt.found || !found && !c.isZero() {
				t.Errorf("found %v", !c.isZero())
			}
		})
	}
}

// Of several files the first that knows the host counts.
func TestKeychainOrder(t *testing.T) {
	home := t.TempDir()
	put := func(name, who string) string {
		path := filepath.Join(home, name)
		os.MkdirAll(filepath.Dir(path), 0o755)
		text := fmt.Sprintf(`{"auths":{"example.com":{"username":%q,"password":"x"}}}`, who)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	env := map[string]string{"HOME": home}
	flag := ""
	steps := []struct {
		who string
		add func()
	}{
		{"docker", func() { put(".docker/config.json", "docker") }},
		{"containers", func() { put(".config/containers/auth.json", "containers") }},
		{"runtime", func() { put("run/containers/auth.json", "runtime"); env["XDG_RUNTIME_DIR"] = home + "/run" }},
		{"config", func() { put("cfg/config.json", "config"); env["DOCKER_CONFIG"] = home + "/cfg" }},
		{"inline", func() { env["DOCKER_AUTH_CONFIG"] = `{"auths":{"example.com":{"username":"inline"}}}` }},
		{"env", func() { env["REGISTRY_AUTH_FILE"] = put("env.json", "env") }},
		{"flag", func() { flag = put("flag.json", "flag") }},
	}
	for _, s := range steps {
		s.add()
		c, err := NewKeychain(flag, func(k string) string { return env[k] }).find(t.Context(), "example.com", "a")
		if err != nil || c.user != s.who {
			t.Errorf("got %q, %v; want %q", c.user, err, s.who)
		}
	}
	_, err := NewKeychain(filepath.Join(home, "absent"), func(string) string { return "" }).find(t.Context(), "example.com", "a")
	wantError(t, err, "no such file")
}

func TestParseChallenges(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{`Bearer realm="https://a/b",service="s, \"t\"",scope="x"`, `[{bearer map[realm:https://a/b scope:x service:s, "t"]}]`},
		{`Basic realm="x", Bearer realm=y`, `[{basic map[realm:x]} {bearer map[realm:y]}]`},
		{`Negotiate, basic REALM = "x"`, `[{negotiate map[]} {basic map[realm:x]}]`},
		{`Bearer realm="open`, `[{bearer map[realm:open]}]`},
		{`Bearer realm=a,realm=b`, `[{bearer map[realm:a]}]`},
		{`=,=`, `[]`}, {``, `[]`},
	} {
		if got := fmt.Sprint(parseChallenges([]string{tt.in})); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.in, got, tt.want)
		}
	}
}

func FuzzAuthChallenge(f *testing.F) {
	f.Add(`Bearer realm="https://a/b",service="s",scope="x"`)
	f.Add(`Basic realm="x\"", Bearer realm=y`)
	f.Add(`Negotiate abc==, basic`)
	f.Fuzz(func(t *testing.T, s string) {
		for _, c := range parseChallenges([]string{s}) {
			if c.scheme == "" || len(c.params) > len(s) {
				t.Fatalf("%q: %+v", s, c)
			}
		}
	})
}

func TestRefusePrivate(t *testing.T) {
	for addr, refused := range map[string]bool{"127.0.0.1:80": true, "[::1]:80": true, "169.254.169.254:80": true, "10.1.1.1:1": true, "93.184.216.34:443": false} {
		if err := refusePrivate("tcp", addr, nil); (err != nil) != refused {
			t.Errorf("%s: %v", addr, err)
		}
	}
	// As a public registry that leads us to a service on loopback.
	c := New(Options{})
	c.backoff = time.Millisecond
	far := false
	h := c.host("registry.example.com")
	h.near = &far
	evil := httptest.NewServer(http.NotFoundHandler())
	defer evil.Close()
	req, err := http.NewRequestWithContext(t.Context(), "GET", evil.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = h.http.Do(req)
	wantError(t, err, "led to the private address 127.0.0.1")
	if transient(err) {
		t.Error("would be tried again")
	}
}

// The registry that most of the world runs.
func TestDockerRegistry(t *testing.T) {
	program, err := exec.LookPath("docker-registry")
	if err != nil {
		t.Skip("docker-registry is not installed: only a simulated registry was tried")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	config := writeFile(t, "config.yml", fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %s}\n", t.TempDir(), addr))
	cmd := exec.Command(program, "serve", config)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	for range 200 {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	c, img := client(t, Options{}), newContent(t)
	wantError(t, push(c, addr+"/team/app:1", img), "")
	wantError(t, pull(c, addr+"/team/app:1", img), "")
	wantError(t, push(c, addr+"/other:1", img, addr+"/team/app"), "")
	wantError(t, pull(c, addr+"/other:1", img), "")
	if _, err := c.Resolve(t.Context(), addr+"/team/app:2"); !errors.Is(err, image.ErrNotFound) {
		t.Errorf("absent tag: %v", err)
	}
	img.blobs[image.Digest(img.layer)] = []byte("damaged")
	wantError(t, push(c, addr+"/third:1", img), "ends after 7 of")
}
