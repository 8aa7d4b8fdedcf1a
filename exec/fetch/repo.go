package fetch

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"img/cache/atomicfile"
)

// A repo is what is remembered of one remote:
//
//	lock             flocked by who uses the repository; its time is the last use
//	remote           the address, for people
//	seen             which commits its refs were when the remote was last asked (JSON)
//	sha1/ sha256/    a bare repository per kind of object names; refs/img/<commit> says that all of a commit is there
//	index            of a checkout in the making, with git's index.lock
type repo struct {
	c      *Client
	remote string
	// main is the remote that the build named; remote may be a submodule of it.
	main string
	dir  string

	// base is the remote's address after redirections, without credentials; auth is the credentials.
	base, auth string
}

func (c *Client) repo(remote, main string) *repo {
	return &repo{c: c, remote: remote, main: main, dir: filepath.Join(c.dir, "git", hashName(remote))}
}

// lock takes the repository for this caller alone. Nobody locks another repository while holding one.
func (r *repo) lock(ctx context.Context) (release func(), err error) {
	if err := atomicfile.MkdirAll(r.dir); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(r.dir, "lock"), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, err
	}
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { r.inherit(); f.Close() }, r.about(f)
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

// about notes whose repository this is, and that it is used.
func (r *repo) about(lock *os.File) error {
	now := time.Now()
	_ = os.Chtimes(lock.Name(), now, now)
	file := filepath.Join(r.dir, "remote")
	if _, err := os.Stat(file); err == nil {
		return nil
	}
	return atomicfile.Write(file, []byte(public(r.remote)+"\n"), atomicfile.Options{})
}

// inherit gives what root made in somebody else's state to its owner.
func (r *repo) inherit() {
	if os.Geteuid() != 0 {
		return
	}
	_ = filepath.WalkDir(r.dir, func(p string, _ os.DirEntry, err error) error {
		if err == nil {
			_ = atomicfile.Inherit(p)
		}
		return nil
	})
}

// seen reads which commits the refs were. What cannot be read was not seen.
func (r *repo) seen() map[string]Commit {
	seen := map[string]Commit{}
	if data, err := os.ReadFile(filepath.Join(r.dir, "seen")); err == nil {
		_ = json.Unmarshal(data, &seen)
	}
	return seen
}

func (r *repo) see(seen map[string]Commit) error {
	data, err := json.Marshal(seen)
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(r.dir, "seen"), data, atomicfile.Options{})
}

// bare returns the repository for a commit, made if need be.
func (r *repo) bare(ctx context.Context, commit string) (string, error) {
	format := "sha1"
	if len(commit) == 64 {
		format = "sha256"
	}
	dir := filepath.Join(r.dir, format)
	if err := r.tidy(); err != nil {
		return "", err
	}
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	// A repository has its name when it is whole.
	fresh := dir + ".new"
	if err := os.RemoveAll(fresh); err != nil {
		return "", err
	}
	if _, err := r.git(ctx, nil, "init", "-q", "--bare", "--template=", "--object-format="+format, "--", fresh); err != nil {
		return "", err
	}
	return dir, os.Rename(fresh, dir)
}

// tidy removes what killed processes left: the lock is ours, so nobody else has files in the making.
func (r *repo) tidy() error {
	return filepath.WalkDir(r.dir, func(p string, d fs.DirEntry, err error) error {
		switch name := d.Name(); {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case !d.IsDir() && (strings.HasSuffix(name, ".lock") || strings.HasPrefix(name, "tmp_") || strings.HasPrefix(name, atomicfile.TempPrefix)):
			return os.Remove(p)
		case d.IsDir() && strings.HasPrefix(name, "tmp_objdir-"):
			return errors.Join(os.RemoveAll(p), fs.SkipDir)
		}
		return nil
	})
}

func keptRef(commit string) string { return "refs/img/" + commit }

// has reports whether all of a commit is there.
func (r *repo) has(ctx context.Context, dir, commit string) bool {
	_, err := r.git(ctx, nil, "--git-dir="+dir, "rev-parse", "-q", "--verify", keptRef(commit))
	return err == nil
}

// keep notes that all of a commit (or tag) is there.
func (r *repo) keep(ctx context.Context, dir, commit string) error {
	_, err := r.git(ctx, nil, "--git-dir="+dir, "update-ref", keptRef(commit), commit)
	return err
}

// fetch brings a commit into the repository, and the object of its annotated tag.
func (r *repo) fetch(ctx context.Context, want Commit) (dir string, err error) {
	if dir, err = r.bare(ctx, want.ID); err != nil {
		return "", err
	}
	if r.has(ctx, dir, want.ID) && (want.Tag == "" || r.has(ctx, dir, want.Tag)) {
		return dir, nil
	}
	if r.c.o.Offline {
		return "", errOffline
	}
	for _, attempt := range []func(context.Context, string, Commit) (bool, error){r.fetchRef, r.fetchCommit, r.fetchAll} {
		done, err := attempt(ctx, dir, want)
		if err != nil && !unable(err) {
			return "", err
		}
		if done {
			return dir, nil
		}
	}
	return "", fmt.Errorf("repository does not contain commit %s", want.ID)
}

// incoming is where a fetched ref stands until it is known what it is.
const incoming = "refs/img/incoming"

// fetchRef fetches the branch or tag alone. It may have moved since it was looked up.
func (r *repo) fetchRef(ctx context.Context, dir string, want Commit) (bool, error) {
	if want.Ref == "" {
		return false, nil
	}
	if err := r.fetchSpec(ctx, dir, "--depth=1", "+"+want.Ref+":"+incoming); err != nil {
		return false, err
	}
	got, err := r.git(ctx, nil, "--git-dir="+dir, "rev-parse", "-q", "--verify", incoming+"^{commit}")
	if err != nil || strings.TrimSpace(got) != want.ID {
		return false, err
	}
	if want.Tag != "" {
		if err := r.keep(ctx, dir, want.Tag); err != nil {
			return false, err
		}
	}
	return true, r.keep(ctx, dir, want.ID)
}

// fetchCommit fetches a commit by its name, which most servers allow.
func (r *repo) fetchCommit(ctx context.Context, dir string, want Commit) (bool, error) {
	name := want.ID
	if want.Tag != "" {
		name = want.Tag
	}
	if err := r.fetchSpec(ctx, dir, "--depth=1", "+"+name+":"+keptRef(name)); err != nil {
		return false, err
	}
	return true, r.keep(ctx, dir, want.ID)
}

// fetchAll fetches all branches and tags with their histories, for servers that give nothing less.
func (r *repo) fetchAll(ctx context.Context, dir string, want Commit) (bool, error) {
	depth := "--no-tags"
	if _, err := os.Stat(filepath.Join(dir, "shallow")); err == nil {
		depth = "--unshallow"
	}
	if err := r.fetchSpec(ctx, dir, depth, "+refs/heads/*:refs/img/heads/*", "+refs/tags/*:refs/img/tags/*"); err != nil {
		return false, err
	}
	for _, name := range []string{want.Tag, want.ID} {
		if name == "" {
			continue
		}
		if _, err := r.git(ctx, nil, "--git-dir="+dir, "cat-file", "-e", name+"^{commit}"); err != nil {
			return false, nil
		}
		if err := r.keep(ctx, dir, name); err != nil {
			return false, err
		}
	}
	return true, nil
}

func (r *repo) fetchSpec(ctx context.Context, dir, depth string, specs ...string) error {
	args := []string{"--git-dir=" + dir, "fetch", "-q", "--no-tags", "--no-write-fetch-head", "--force", depth, "--", r.address(ctx)}
	_, err := r.online(ctx, append(args, specs...)...)
	return err
}

// unable reports whether an error says that the server cannot be asked so.
func unable(err error) bool {
	for _, said := range []string{"shallow", "--depth", "not our ref", "unadvertised object", "remote ref", "does not allow request", "bad object"} {
		if strings.Contains(err.Error(), said) {
			return true
		}
	}
	return false
}

// Secrets with credentials for git hosts, as BuildKit names them; ".<host>" may follow.
const (
	gitHeaderSecret = "GIT_AUTH_HEADER"
	gitTokenSecret  = "GIT_AUTH_TOKEN"
)

// credentials are what to send to the host of an address: what stands in it, else a secret. A secret without a host's name is for the
// host that the build names, whatever its submodules say.
func (r *repo) credentials(u *url.URL) (string, error) {
	if u.User != nil {
		password, _ := u.User.Password()
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(u.User.Username()+":"+password)), nil
	}
	ids := []string{gitHeaderSecret + "." + u.Host, gitTokenSecret + "." + u.Host}
	if m, err := url.Parse(r.main); err == nil && m.Host == u.Host && m.Scheme == u.Scheme {
		ids = append(ids, gitHeaderSecret, gitTokenSecret)
	}
	for _, id := range ids {
		data, ok, err := r.c.o.Secret(id)
		if err != nil {
			return "", fmt.Errorf("secret %s: %w", id, err)
		}
		if !ok {
			continue
		}
		value := strings.TrimSpace(string(data))
		if strings.HasPrefix(id, gitTokenSecret) {
			value = "Basic " + base64.StdEncoding.EncodeToString([]byte("x-access-token:"+value))
		}
		if strings.ContainsAny(value, "\r\n\x00") {
			return "", fmt.Errorf("secret %s has several lines", id)
		}
		return value, nil
	}
	return "", nil
}

// address is where git is sent. Redirections are followed here, since git would take credentials along to wherever it is sent.
func (r *repo) address(ctx context.Context) string {
	if r.base != "" {
		return r.base
	}
	r.base = r.remote
	u, err := url.Parse(r.remote)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" {
		return r.base
	}
	if r.auth, err = r.credentials(u); err != nil {
		return r.base
	}
	u.User = nil
	r.base = u.String()
	const service = "/info/refs"
	probe := *u
	probe.Path, probe.RawPath, probe.RawQuery = strings.TrimSuffix(u.Path, "/")+service, "", "service=git-upload-pack"
	d := &download{c: r.c, url: &probe, auth: r.auth}
	ctx, cancel := context.WithTimeout(ctx, silence)
	defer cancel()
	resp, err := d.ask(ctx)
	if err != nil {
		return r.base // git finds the same, and says it
	}
	resp.Body.Close()
	last := resp.Request.URL
	if resp.StatusCode == http.StatusOK && last.String() != probe.String() && strings.HasSuffix(last.Path, service) {
		if last.Host != u.Host || last.Scheme != u.Scheme {
			r.auth = ""
		}
		moved := *last
		moved.Path, moved.RawPath, moved.RawQuery, moved.User = strings.TrimSuffix(last.Path, service), "", "", nil
		r.base = moved.String()
	}
	return r.base
}
