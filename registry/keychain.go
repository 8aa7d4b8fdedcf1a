package registry

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

const (
	maxAuthFile   = 1 << 20
	helperTimeout = 10 * time.Second
)

// A Keychain finds credentials in files, in this order: the authfile given, REGISTRY_AUTH_FILE, DOCKER_AUTH_CONFIG (the JSON itself),
// $DOCKER_CONFIG/config.json, $XDG_RUNTIME_DIR/containers/auth.json, ~/.config/containers/auth.json, ~/.docker/config.json.
// In each: credHelpers, credsStore, auths by the longest path. The first that has something for the host wins.
// The zero value has nothing.
type Keychain struct {
	sources []source

	mu    sync.Mutex
	known map[string]credential // what helpers answered, by helper and server
}

// A source is an auth file. Its text is read when it is needed.
type source struct {
	path     string
	inline   string // instead of a file's text
	required bool
}

// NewKeychain reads the environment through getenv: REGISTRY_AUTH_FILE, DOCKER_AUTH_CONFIG, DOCKER_CONFIG, XDG_RUNTIME_DIR,
// XDG_CONFIG_HOME, HOME. Files are read when credentials are asked for.
func NewKeychain(authfile string, getenv func(string) string) *Keychain {
	k := &Keychain{}
	add := func(dir string, elem ...string) {
		if dir != "" {
			k.sources = append(k.sources, source{path: filepath.Join(append([]string{dir}, elem...)...)})
		}
	}
	if authfile != "" {
		k.sources = append(k.sources, source{path: authfile, required: true})
	}
	add(getenv("REGISTRY_AUTH_FILE"))
	if text := getenv("DOCKER_AUTH_CONFIG"); text != "" {
		k.sources = append(k.sources, source{path: "DOCKER_AUTH_CONFIG", inline: text})
	}
	add(getenv("DOCKER_CONFIG"), "config.json")
	add(getenv("XDG_RUNTIME_DIR"), "containers", "auth.json")
	if config := getenv("XDG_CONFIG_HOME"); config != "" {
		add(config, "containers", "auth.json")
	} else {
		add(getenv("HOME"), ".config", "containers", "auth.json")
	}
	if getenv("DOCKER_CONFIG") == "" {
		add(getenv("HOME"), ".docker", "config.json")
	}
	return k
}

// OneCredential is a keychain with the password of one user at one registry.
func OneCredential(host, user, password string) (*Keychain, error) {
	text, err := json.Marshal(authFile{Auths: map[string]authEntry{host: {Username: user, Password: password}}})
	if err != nil {
		return nil, err
	}
	return &Keychain{sources: []source{{path: "the command line", inline: string(text)}}}, nil
}

// A credential is what a host asks for; the zero value is nothing.
type credential struct {
	user, password string
	identityToken  string // for OAuth2's refresh_token
	registryToken  string // a ready bearer token
}

func (c credential) isZero() bool { return c == credential{} }

func (c credential) basic() string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(c.user+":"+c.password))
}

// find returns the credential for a repository; zero if there is none.
func (k *Keychain) find(ctx context.Context, host, repo string) (credential, error) {
	for _, s := range k.sources {
		f, err := s.read()
		if err != nil {
			return credential{}, fmt.Errorf("credentials in %s: %w", s.path, err)
		}
		c, err := k.lookup(ctx, f, host, repo)
		if err != nil {
			return credential{}, fmt.Errorf("credentials in %s: %w", s.path, err)
		}
		if !c.isZero() {
			return c, nil
		}
	}
	return credential{}, nil
}

// An authFile is the part of Docker's config.json and of containers-auth.json(5) that is about credentials.
type authFile struct {
	Auths       map[string]authEntry `json:"auths"`
	CredHelpers map[string]string    `json:"credHelpers"`
	CredsStore  string               `json:"credsStore"`
}

type authEntry struct {
	Auth          string `json:"auth"`
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

func (s source) read() (authFile, error) {
	var f authFile
	raw := []byte(s.inline)
	if s.inline == "" {
		file, err := os.Open(s.path)
		if err != nil {
			if !s.required && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission)) {
				return f, nil
			}
			return f, err
		}
		defer file.Close()
		if raw, err = io.ReadAll(io.LimitReader(file, maxAuthFile+1)); err != nil {
			return f, err
		}
	}
	if len(raw) > maxAuthFile {
		return f, fmt.Errorf("larger than %d bytes", maxAuthFile)
	}
	if len(bytes.TrimSpace(raw)) == 0 {
		return f, nil
	}
	if err := json.Unmarshal(raw, &f); err != nil {
		return f, errors.New("not a JSON auth file") // the decoder's own text could quote a secret
	}
	return f, nil
}

func (k *Keychain) lookup(ctx context.Context, f authFile, host, repo string) (credential, error) {
	if name := f.helper(host); name != "" {
		c, err := k.ask(ctx, name, serverURL(host))
		if err != nil || !c.isZero() {
			return c, err
		}
	}
	best, length := authEntry{}, -1
	for key, entry := range f.Auths {
		if n := match(key, host, repo); n > length {
			best, length = entry, n
		}
	}
	return best.credential()
}

func (f authFile) helper(host string) string {
	for _, name := range aliases(host) {
		if h := f.CredHelpers[name]; h != "" {
			return h
		}
	}
	for pattern, h := range f.CredHelpers {
		if suffix, ok := strings.CutPrefix(pattern, "*"); ok && strings.HasPrefix(suffix, ".") && strings.HasSuffix(host, suffix) {
			return h
		}
	}
	return f.CredsStore
}

// aliases are the names by which a registry is known in auth files. Docker Hub has many.
func aliases(host string) []string {
	if host == "docker.io" {
		return []string{"docker.io", "https://index.docker.io/v1/", "index.docker.io", "registry-1.docker.io"}
	}
	return []string{host}
}

func serverURL(host string) string {
	if host == "docker.io" {
		return "https://index.docker.io/v1/"
	}
	return host
}

// match returns how long a part of host/repo a key of auths names, or -1. Keys may have a scheme and a path; a port must be equal.
func match(key, host, repo string) int {
	key = strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
	key = strings.TrimSuffix(key, "/")
	for _, version := range []string{"/v1", "/v2"} {
		key = strings.TrimSuffix(key, version)
	}
	name, path, _ := strings.Cut(key, "/")
	for _, a := range aliases(host) {
		if name == a && (path == "" || repo == path || strings.HasPrefix(repo, path+"/")) {
			return len(path)
		}
	}
	return -1
}

func (e authEntry) credential() (credential, error) {
	c := credential{user: e.Username, password: e.Password, identityToken: e.IdentityToken, registryToken: e.RegistryToken}
	if e.Auth == "" {
		return c, nil
	}
	raw, err := base64.StdEncoding.DecodeString(e.Auth)
	user, password, ok := strings.Cut(string(raw), ":")
	if err != nil || !ok {
		return credential{}, errors.New(`"auth" is not the base64 of user:password`)
	}
	c.user, c.password = user, strings.Trim(password, "\x00")
	return c, nil
}

// ask runs a credential helper (docker-credential-NAME get), once for each server.
func (k *Keychain) ask(ctx context.Context, name, server string) (credential, error) {
	if strings.ContainsAny(name, "/\x00") {
		return credential{}, fmt.Errorf("credential helper %q: a name, not a path", name)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if c, ok := k.known[name+" "+server]; ok {
		return c, nil
	}
	c, err := runHelper(ctx, "docker-credential-"+name, server)
	if err != nil {
		return credential{}, fmt.Errorf("docker-credential-%s: %w", name, err)
	}
	if k.known == nil {
		k.known = map[string]credential{}
	}
	k.known[name+" "+server] = c
	return c, nil
}

func runHelper(ctx context.Context, program, server string) (credential, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, helperTimeout, fmt.Errorf("no answer within %s", helperTimeout))
	defer cancel()
	out := &limited{left: maxBody}
	cmd := exec.CommandContext(ctx, program, "get")
	cmd.Stdin = strings.NewReader(server)
	cmd.Stdout = out
	cmd.WaitDelay = time.Second // its children may hold the pipe open
	err := cmd.Run()
	switch {
	case ctx.Err() != nil:
		return credential{}, context.Cause(ctx)
	case out.left < 0:
		return credential{}, fmt.Errorf("answer is longer than %d bytes", maxBody)
	case err != nil && strings.Contains(out.buf.String(), "credentials not found"):
		return credential{}, nil
	case err != nil:
		return credential{}, err // not its output, which may hold secrets
	}
	var doc struct{ Username, Secret string }
	if json.Unmarshal(out.buf.Bytes(), &doc) != nil {
		return credential{}, errors.New("answer is not JSON")
	}
	if doc.Username == "<token>" {
		return credential{identityToken: doc.Secret}, nil
	}
	return credential{user: doc.Username, password: doc.Secret}, nil
}

// limited keeps a bounded part of what is written, and then fails.
type limited struct {
	buf  bytes.Buffer // a field: embedded, its ReadFrom would pass Write by
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	if l.left -= len(p); l.left < 0 {
		return 0, io.ErrShortWrite
	}
	return l.buf.Write(p)
}

func isAddress(name string) bool { return net.ParseIP(name) != nil }
