package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/term"

	"img/cache/atomicfile"
	"img/cmd/img/progress"
	"img/registry"
)

// dockerHub is the key under which Docker keeps the credentials of docker.io.
const dockerHub = "https://index.docker.io/v1/"

// LoginCmd is `img login`.
type LoginCmd struct {
	Server           string `arg:"" optional:"" help:"Registry (default: docker.io)."`
	Username         string `short:"u" placeholder:"NAME" help:"User name."`
	Password         string `short:"p" placeholder:"TEXT" help:"Password; others can see it in the process list."`
	PasswordStdin    bool   `help:"Read the password from standard input."`
	InsecureRegistry bool   `help:"Accept a registry without TLS."`
}

// Run asks the registry whether it takes the credentials, and keeps them.
func (c *LoginCmd) Run(ctx context.Context, g *Globals) error {
	if err := c.ask(g); err != nil {
		return err
	}
	server := serverKey(c.Server)
	if err := c.try(ctx, server); err != nil {
		return sourceError(fmt.Errorf("log in to %s: %w", server, err))
	}
	f, err := readDockerConfig(g.getenv)
	if err != nil {
		return err
	}
	if helper := f.helper(server); helper != "" {
		err = runHelper(ctx, helper, "store", map[string]string{"ServerURL": server, "Username": c.Username, "Secret": c.Password})
	} else {
		err = f.set(server, c.Username, c.Password)
	}
	if err != nil {
		return fmt.Errorf("keep credentials for %s: %w", server, err)
	}
	fmt.Fprintln(g.stdout, "Login succeeded.")
	return nil
}

// ask completes user and password.
func (c *LoginCmd) ask(g *Globals) error {
	switch {
	case c.Password != "" && c.PasswordStdin:
		return usagef("--password and --password-stdin exclude each other")
	case c.Password != "":
		warnf(g.stderr, "a password on the command line can be seen by others; use --password-stdin")
	case c.PasswordStdin:
		if c.Username == "" {
			return usagef("--password-stdin needs --username")
		}
		b, err := io.ReadAll(io.LimitReader(g.stdin, 1<<20))
		if err != nil {
			return fmt.Errorf("read password: %w", err)
		}
		c.Password = strings.TrimRight(string(b), "\r\n")
	case !isTerminal(g.stdin):
		return usagef("there is no terminal to ask for a password; use --username and --password-stdin")
	}
	if c.Username == "" {
		fmt.Fprint(g.stderr, "Username: ")
		line, err := bufio.NewReader(g.stdin).ReadString('\n')
		if err != nil {
			return fmt.Errorf("read user name: %w", err)
		}
		c.Username = strings.TrimSpace(line)
	}
	if c.Password == "" && !c.PasswordStdin {
		fmt.Fprint(g.stderr, "Password: ")
		b, err := term.ReadPassword(int(g.stdin.(*os.File).Fd()))
		fmt.Fprintln(g.stderr)
		if err != nil {
			return fmt.Errorf("read password: %w", err)
		}
		c.Password = string(b)
	}
	if c.Username == "" || c.Password == "" {
		return usagef("user name and password must not be empty")
	}
	return nil
}

// try asks the registry, by the rules for credentials that all other requests follow.
func (c *LoginCmd) try(ctx context.Context, server string) error {
	host := server
	if server == dockerHub {
		host = "docker.io"
	}
	keys, err := registry.OneCredential(host, c.Username, c.Password)
	if err != nil {
		return err
	}
	o := registry.Options{Keychain: keys, UserAgent: userAgent()}
	if c.InsecureRegistry {
		o.Insecure = []string{host}
	}
	err = registry.New(o).Login(ctx, host)
	var answer *registry.Error
	if errors.As(err, &answer) && answer.Unauthorized() {
		return withCode(exitSource, fmt.Errorf("the registry does not take these credentials (%d %s)", answer.Status, http.StatusText(answer.Status)))
	}
	return err
}

// LogoutCmd is `img logout`.
type LogoutCmd struct {
	Server string `arg:"" optional:"" help:"Registry (default: docker.io)."`
}

// Run forgets credentials.
func (c *LogoutCmd) Run(ctx context.Context, g *Globals) error {
	server := serverKey(c.Server)
	f, err := readDockerConfig(g.getenv)
	if err != nil {
		return err
	}
	helper := f.helper(server)
	if helper == "" && !f.has(server) {
		fmt.Fprintf(g.stdout, "Not logged in to %s\n", progress.Clean(server))
		return nil
	}
	fmt.Fprintf(g.stdout, "Removing login credentials for %s\n", progress.Clean(server))
	if helper != "" {
		err = runHelper(ctx, helper, "erase", server)
	}
	if err := errors.Join(err, f.erase(server)); err != nil {
		return fmt.Errorf("forget credentials for %s: %w", server, err)
	}
	fmt.Fprintln(g.stdout, "Logout succeeded.")
	return nil
}

// serverKey is the name under which a registry's credentials are kept: the host, but Docker's own for docker.io.
func serverKey(server string) string {
	host := strings.TrimPrefix(strings.TrimPrefix(server, "https://"), "http://")
	host, _, _ = strings.Cut(host, "/")
	switch host {
	case "", "docker.io", "index.docker.io", "registry-1.docker.io":
		return dockerHub
	}
	return host
}

// A dockerConfig is Docker's config.json. What we do not know stays as it is.
type dockerConfig struct {
	path   string
	fields map[string]json.RawMessage
	auths  map[string]json.RawMessage
}

// readDockerConfig reads $DOCKER_CONFIG/config.json, else ~/.docker/config.json; a missing file is an empty one.
func readDockerConfig(getenv func(string) string) (*dockerConfig, error) {
	dir := getenv("DOCKER_CONFIG")
	if dir == "" {
		if getenv("HOME") == "" {
			return nil, withHint(exitHost, fmt.Errorf("there is no place for credentials"), "set HOME or DOCKER_CONFIG")
		}
		dir = filepath.Join(getenv("HOME"), ".docker")
	}
	f := &dockerConfig{path: filepath.Join(dir, "config.json"), fields: map[string]json.RawMessage{}, auths: map[string]json.RawMessage{}}
	text, err := os.ReadFile(f.path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(bytes.TrimSpace(text)) == 0 {
		return f, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &f.fields)
	}
	if err == nil && f.fields["auths"] != nil {
		err = json.Unmarshal(f.fields["auths"], &f.auths)
	}
	if err != nil {
		return nil, sourceError(fmt.Errorf("read %s: %w", f.path, err))
	}
	if f.fields == nil { // the file says null
		f.fields = map[string]json.RawMessage{}
	}
	if f.auths == nil {
		f.auths = map[string]json.RawMessage{}
	}
	return f, nil
}

// helper names the credential helper of a server: credHelpers before credsStore.
func (f *dockerConfig) helper(server string) string {
	var helpers map[string]string
	var store string
	json.Unmarshal(f.fields["credHelpers"], &helpers) // absent or of another form: none
	json.Unmarshal(f.fields["credsStore"], &store)
	if h := helpers[server]; h != "" {
		return h
	}
	return store
}

func (f *dockerConfig) has(server string) bool { return f.auths[server] != nil }

func (f *dockerConfig) set(server, user, password string) error {
	auth := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	entry, err := json.Marshal(map[string]string{"auth": auth})
	if err != nil {
		return err
	}
	f.auths[server] = entry
	return f.write()
}

func (f *dockerConfig) erase(server string) error {
	if !f.has(server) {
		return nil
	}
	delete(f.auths, server)
	return f.write()
}

// write replaces the file at once, readable for its owner alone. A link, as dotfile managers make it, stays one.
func (f *dockerConfig) write() error {
	auths, err := json.Marshal(f.auths)
	if err != nil {
		return err
	}
	f.fields["auths"] = auths
	text, err := json.MarshalIndent(f.fields, "", "\t")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(f.path), 0o700); err != nil {
		return err
	}
	path := f.path
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	return atomicfile.Write(path, append(text, '\n'), atomicfile.Options{Sync: true, Mode: 0o600})
}

// runHelper speaks to a credential helper (docker-credential-helpers' protocol: a verb, the message on standard
// input, errors on standard output).
func runHelper(ctx context.Context, helper, verb string, message any) error {
	if strings.ContainsAny(helper, "/\x00") {
		return fmt.Errorf("credential helper %q is not a plain name", helper)
	}
	in, ok := message.(string)
	if !ok {
		b, err := json.Marshal(message)
		if err != nil {
			return err
		}
		in = string(b)
	}
	cmd := osexec.CommandContext(ctx, "docker-credential-"+helper, verb)
	cmd.Stdin = strings.NewReader(in)
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("credential helper %s: %w: %s", helper, err, strings.TrimSpace(string(out)))
	}
	return nil
}
