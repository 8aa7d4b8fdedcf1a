package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"img/cache/atomicfile"
)

// gitConfig is all the configuration that git is given, but for credentials, which are in its environment alone. Everything that could run
// a program, or reach another place than the remote, is off (git-config(1); CVE-2017-1000117, 2018-11235, 2022-24765, 2022-39253).
const gitConfig = `[core]
	hooksPath = /dev/null
	fsmonitor = false
	autocrlf = false
	attributesFile = /dev/null
	excludesFile = /dev/null
[protocol]
	allow = never
[credential]
	helper =
[safe]
	directory = *
[init]
	defaultBranch = master
[advice]
	detachedHead = false
[gc]
	auto = 0
[maintenance]
	auto = false
[submodule]
	recurse = false
[fetch]
	recurseSubmodules = false
[http]
	followRedirects = false
	lowSpeedLimit = 1
	lowSpeedTime = 60
`

// configFile writes the configuration if it is not there yet.
func (c *Client) configFile() (string, error) {
	dir, err := c.sub("git")
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, "config")
	if data, err := os.ReadFile(file); err == nil && string(data) == gitConfig {
		return file, nil
	}
	return file, atomicfile.Write(file, []byte(gitConfig), atomicfile.Options{})
}

// online runs git with leave to reach the remote.
func (r *repo) online(ctx context.Context, args ...string) (string, error) {
	scheme, err := r.c.transport(r.remote)
	if err != nil {
		return "", err
	}
	env := []string{"GIT_ALLOW_PROTOCOL=" + scheme}
	for _, name := range []string{"http_proxy", "https_proxy", "no_proxy", "all_proxy", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"} {
		env = append(env, name+"="+r.c.o.Getenv(name))
	}
	if ca := r.c.o.Getenv("SSL_CERT_FILE"); ca != "" {
		env = append(env, "GIT_SSL_CAINFO="+ca)
	}
	switch scheme {
	case "http", "https":
		base, err := url.Parse(r.address(ctx))
		if err != nil {
			return "", err
		}
		env[0] = "GIT_ALLOW_PROTOCOL=" + base.Scheme
		if r.auth != "" {
			env = append(env, "GIT_CONFIG_COUNT=1", fmt.Sprintf("GIT_CONFIG_KEY_0=http.%s://%s/.extraHeader", base.Scheme, base.Host),
				"GIT_CONFIG_VALUE_0=Authorization: "+r.auth)
		}
	case "ssh":
		ssh, err := r.c.sshEnv()
		if err != nil {
			return "", err
		}
		env = append(env, ssh...)
	}
	return r.git(ctx, env, args...)
}

// sshEnv makes git use ssh without the caller's configuration and keys: with the agent that was given, and with hosts that are known.
func (c *Client) sshEnv() ([]string, error) {
	if c.o.SSHAgent == "" {
		return nil, hintError{errors.New("no ssh agent was given for it"), "--ssh default lends the build your agent"}
	}
	if _, err := exec.LookPath("ssh"); err != nil {
		return nil, hintError{errors.New("the program ssh is not installed"), "install openssh-client, or use an https address"}
	}
	var known []string
	for _, f := range c.o.KnownHosts {
		known = append(known, `"`+f+`"`)
	}
	if len(known) == 0 {
		known = []string{"none"}
	}
	command := []string{"ssh", "-F", "/dev/null"}
	for _, o := range []string{
		"BatchMode=yes", "StrictHostKeyChecking=yes", "UserKnownHostsFile=" + strings.Join(known, " "), "IdentityFile=none",
		"ForwardAgent=no", "ForwardX11=no", "ClearAllForwardings=yes", "ConnectTimeout=30", "ServerAliveInterval=15", "ServerAliveCountMax=4",
	} {
		command = append(command, "-o", "'"+strings.ReplaceAll(o, "'", `'\''`)+"'")
	}
	return []string{"SSH_AUTH_SOCK=" + c.o.SSHAgent, "GIT_SSH_VARIANT=ssh", "GIT_SSH_COMMAND=" + strings.Join(command, " ")}, nil
}

// Bounds of what git may say.
const (
	maxOutput = 256 << 20
	maxErrors = 16 << 10
)

// git runs git with an emptied environment and env, and returns what it says. Without env it can reach no remote.
func (r *repo) git(ctx context.Context, env []string, args ...string) (string, error) {
	var out bytes.Buffer
	err := r.gitTo(ctx, &bounded{&out, maxOutput}, env, args...)
	if err != nil {
		return "", err
	}
	return out.String(), nil
}

// gitTo runs git as git does, and hands on what it says while it says it.
func (r *repo) gitTo(ctx context.Context, out io.Writer, env []string, args ...string) error {
	program, err := exec.LookPath("git")
	if err != nil {
		return hintError{errors.New("the program git is not installed"), "install git: repositories are fetched with it"}
	}
	config, err := r.c.configFile()
	if err != nil {
		return err
	}
	var complaints bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = r.dir
	cmd.Stdout, cmd.Stderr = out, &bounded{&complaints, maxErrors}
	cmd.Env = append([]string{
		"PATH=" + r.c.o.Getenv("PATH"), "HOME=/dev/null", "LC_ALL=C", "TZ=UTC", "TMPDIR=" + r.dir,
		"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=" + config, "GIT_ATTR_NOSYSTEM=1", "GIT_CEILING_DIRECTORIES=" + filepath.Dir(r.dir),
		"GIT_TERMINAL_PROMPT=0", "GIT_ASKPASS=", "SSH_ASKPASS=", "GIT_NO_REPLACE_OBJECTS=1", "GIT_ADVICE=0",
		"GIT_AUTHOR_NAME=img", "GIT_AUTHOR_EMAIL=img", "GIT_COMMITTER_NAME=img", "GIT_COMMITTER_EMAIL=img",
	}, env...)
	if err := run(ctx, cmd); err != nil {
		return gitError(ctx, args, complaints.String(), err)
	}
	return nil
}

// run runs a program that dies with this process, and with all it started when ctx ends.
func run(ctx context.Context, cmd *exec.Cmd) error {
	// The signal at the parent's death is at its thread's.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 10 * time.Second
	return cmd.Run()
}

// A bounded buffer takes no more than it may.
type bounded struct {
	*bytes.Buffer
	max int
}

func (b *bounded) Write(p []byte) (int, error) {
	if room := b.max - b.Len(); len(p) > room {
		b.Buffer.Write(p[:max(room, 0)])
		if b.max == maxOutput {
			return 0, fmt.Errorf("git said more than %d bytes", b.max)
		}
		return len(p), nil
	}
	return b.Buffer.Write(p)
}

// gitError is what git complained about, in one line.
func gitError(ctx context.Context, args []string, complaints string, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var lines []string
	for line := range strings.Lines(complaints) {
		line = strings.TrimSpace(line)
		for _, p := range []string{"fatal: ", "error: ", "remote: "} {
			line = strings.TrimPrefix(line, p)
		}
		if line != "" && !strings.HasPrefix(line, "warning: ") && !strings.HasPrefix(line, "hint: ") {
			lines = append(lines, line)
		}
	}
	text := strings.Join(lines, "; ")
	if text == "" {
		text = err.Error()
	}
	verb := "git"
	for _, a := range args {
		if !strings.HasPrefix(a, "-") {
			verb += " " + a
			break
		}
	}
	if strings.Contains(text, "No space left on device") {
		return fmt.Errorf("%s: %.300s: %w", verb, lines[0], syscall.ENOSPC)
	}
	said := fmt.Errorf("%s: %s", verb, text)
	for part, hint := range hints {
		if strings.Contains(text, part) {
			return hintError{said, hint}
		}
	}
	return said
}

// hints are remedies for what git and ssh say.
var hints = map[string]string{
	"could not read Username":      "there is no such repository, or it is not public: --secret id=GIT_AUTH_TOKEN,src=FILE gives a token",
	"Authentication failed":        "the host does not take these credentials: --secret id=GIT_AUTH_TOKEN,src=FILE gives a token",
	"Host key verification failed": "the host's key has to be in known_hosts: `ssh-keyscan HOST` shows it, to be compared with what the host's owner says",
	"Permission denied (publickey": "the agent that --ssh default lends has no key that the host takes; `ssh-add -l` lists its keys",
}
