package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"img/dag"
)

// Checkout puts the files of a commit into an empty directory: directories and programs with mode 0755, all else 0644. Submodules come
// along, unless g says otherwise, but without a .git of their own. Errors are an *Error.
func (c *Client) Checkout(ctx context.Context, g *dag.Git, commit Commit, dir string) error {
	return failure(g.Remote, c.checkout(ctx, g, commit, dir))
}

func (c *Client) checkout(ctx context.Context, g *dag.Git, commit Commit, dir string) error {
	work, subdir := dir, cleanPath(g.Subdir)
	if subdir != "." {
		var err error
		if work, err = os.MkdirTemp(dir, ".checkout-"); err != nil {
			return err
		}
	}
	t := &tree{c: c, main: g.Remote, keep: g.KeepGitDir && subdir == ".", submodules: !g.SkipSubmodules}
	if err := t.put(ctx, g.Remote, commit, work, 0); err != nil {
		return err
	}
	if subdir != "." {
		if err := raise(dir, work, subdir); err != nil {
			return err
		}
	}
	var mtime time.Time
	if g.MTime == "commit" {
		mtime = t.time
	}
	return settle(dir, mtime)
}

// CommitTime is when a commit was made, as its committer's clock had it. Errors are an *Error.
func (c *Client) CommitTime(ctx context.Context, g *dag.Git, commit Commit) (time.Time, error) {
	t, err := c.commitTime(ctx, g, commit)
	return t, failure(g.Remote, err)
}

func (c *Client) commitTime(ctx context.Context, g *dag.Git, commit Commit) (time.Time, error) {
	r := c.repo(g.Remote, g.Remote)
	release, err := r.lock(ctx)
	if err != nil {
		return time.Time{}, err
	}
	defer release()
	bare, err := r.fetch(ctx, commit)
	if err != nil {
		return time.Time{}, err
	}
	return r.time(ctx, bare, commit.ID)
}

func cleanPath(p string) string {
	p = strings.TrimPrefix(path.Join("/", p), "/")
	if p == "" {
		return "."
	}
	return p
}

// Bounds of submodules, which may name each other in a circle.
const (
	maxDepth      = 16
	maxSubmodules = 1000
)

// A tree is a checkout with its submodules.
type tree struct {
	c          *Client
	main       string
	keep       bool
	submodules bool
	count      int
	entries    int
	// time is when the main commit was made.
	time time.Time
}

// put checks out a commit of a remote, and then its submodules.
func (t *tree) put(ctx context.Context, remote string, commit Commit, dir string, depth int) error {
	links, err := t.putFiles(ctx, remote, commit, dir, depth)
	if err != nil {
		return err
	}
	for _, l := range links {
		if t.count++; t.count > maxSubmodules || depth >= maxDepth {
			return fmt.Errorf("submodule %s: more than %d submodules, or nested more than %d deep", l.path, maxSubmodules, maxDepth)
		}
		if err := t.putLink(ctx, l, dir, depth); err != nil {
			return fmt.Errorf("submodule %s: %w", l.path, err)
		}
	}
	return nil
}

func (t *tree) putLink(ctx context.Context, l link, dir string, depth int) error {
	if _, err := t.c.transport(l.remote); err != nil {
		return err
	}
	if err := onlyDirs(dir, l.path); err != nil {
		return err
	}
	return t.put(ctx, l.remote, Commit{ID: l.commit}, filepath.Join(dir, l.path), depth+1)
}

// putFiles checks out the files of one commit and returns its submodules.
func (t *tree) putFiles(ctx context.Context, remote string, commit Commit, dir string, depth int) ([]link, error) {
	r := t.c.repo(remote, t.main)
	release, err := r.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	bare, err := r.fetch(ctx, commit)
	if err != nil {
		return nil, err
	}
	if depth == 0 {
		if t.time, err = r.time(ctx, bare, commit.ID); err != nil {
			return nil, err
		}
	}
	listed, err := r.list(ctx, bare, commit.ID, maxEntries-t.entries)
	if err != nil {
		return nil, err
	}
	t.entries += listed.entries
	if t.keep && depth == 0 {
		err = r.clone(ctx, bare, commit, dir)
	} else {
		err = r.files(ctx, bare, commit.ID, dir)
	}
	if err != nil || !t.submodules || len(listed.links) == 0 {
		return nil, err
	}
	return r.links(ctx, bare, commit.ID, listed.links)
}

// time is when a commit was made.
func (r *repo) time(ctx context.Context, bare, commit string) (time.Time, error) {
	// Not git show: it compares the trees even to show nothing of them, and a tree may stand for any number of files.
	out, err := r.git(ctx, nil, "--git-dir="+bare, "rev-list", "--max-count=1", "--timestamp", commit+"^{commit}")
	if err != nil {
		return time.Time{}, err
	}
	stamp, _, _ := strings.Cut(out, " ")
	seconds, err := strconv.ParseInt(stamp, 10, 64)
	return time.Unix(seconds, 0), err
}

// files puts the files of a commit into a directory.
func (r *repo) files(ctx context.Context, bare, commit, dir string) error {
	index := filepath.Join(r.dir, "index")
	if err := os.RemoveAll(index); err != nil {
		return err
	}
	defer os.Remove(index)
	_, err := r.git(ctx, []string{"GIT_INDEX_FILE=" + index}, "--git-dir="+bare, "--work-tree="+dir, "read-tree", "--reset", "-u", commit)
	return err
}

// clone makes a repository of its own with one commit, checked out. It names the remote, without credentials.
func (r *repo) clone(ctx context.Context, bare string, commit Commit, dir string) error {
	source := keptRef(commit.ID)
	if commit.Tag != "" {
		source = keptRef(commit.Tag)
	}
	if commit.Ref != "" {
		source += ":" + commit.Ref
	}
	in := func(args ...string) []string {
		return append([]string{"--git-dir=" + filepath.Join(dir, ".git"), "--work-tree=" + dir}, args...)
	}
	format := "--object-format=" + filepath.Base(bare)
	for _, args := range [][]string{
		{"init", "-q", "--template=", format, "--", dir},
		in("remote", "add", "--", "origin", public(r.remote)),
		in("fetch", "-q", "-u", "--depth=1", "--no-tags", "--", "file://"+bare, source),
		in("checkout", "-q", "--detach", commit.ID),
	} {
		if _, err := r.git(ctx, []string{"GIT_ALLOW_PROTOCOL=file"}, args...); err != nil {
			return err
		}
	}
	git := filepath.Join(dir, ".git")
	return errors.Join(os.RemoveAll(filepath.Join(git, "FETCH_HEAD")), os.RemoveAll(filepath.Join(git, "logs")))
}

// public is a remote's address without credentials.
func public(remote string) string {
	u, err := url.Parse(remote)
	if err != nil || u.User == nil {
		return remote
	}
	name := u.User.Username()
	if u.User = nil; u.Scheme == "ssh" {
		u.User = url.User(name)
	}
	return u.String()
}

// A link is a submodule: a commit of another repository at a path.
type link struct{ path, commit, remote string }

// maxEntries is how many files and directories a checkout may have, submodules included; an archive may have as many.
var maxEntries = 4_000_000

// list reads what is in a commit, before it is written, and fails beyond max entries. A tree may name one that it shares ten times, and
// so on: a few kilobytes stand for more files than any disk holds.
func (r *repo) list(ctx context.Context, bare, commit string, max int) (*lister, error) {
	l := &lister{max: max}
	err := r.gitTo(ctx, l, nil, "--git-dir="+bare, "ls-tree", "-r", "-t", "-z", "--full-tree", commit)
	if l.err != nil {
		return nil, l.err // git only saw that nobody listened any more
	}
	return l, err
}

// A lister takes the output of ls-tree: "<mode> <type> <object>\t<path>\0" for each entry.
type lister struct {
	max     int
	entries int
	links   []link
	part    []byte // the beginning of an entry
	err     error
}

func (l *lister) Write(p []byte) (int, error) {
	n := len(p)
	for l.err == nil {
		head, rest, whole := bytes.Cut(p, []byte{0})
		l.part = append(l.part, head...)
		if !whole {
			break
		}
		l.err = l.entry(string(l.part))
		l.part, p = l.part[:0], rest
	}
	return n, l.err
}

func (l *lister) entry(text string) error {
	if l.entries++; l.entries > l.max {
		return fmt.Errorf("the repository has more than %d files and directories", maxEntries)
	}
	about, name, _ := strings.Cut(text, "\t")
	if f := strings.Fields(about); len(f) == 3 && f[0] == "160000" {
		l.links = append(l.links, link{path: name, commit: f[2]})
	}
	return nil
}

// links says where a commit's submodules come from.
func (r *repo) links(ctx context.Context, bare, commit string, found []link) ([]link, error) {
	modules, err := r.modules(ctx, bare, commit)
	if err != nil {
		return nil, err
	}
	kept := found[:0]
	for _, l := range found {
		m := modules[l.path]
		if m["update"] == "none" {
			continue
		}
		if m["url"] == "" {
			hint := "?submodules=false at the end of the address leaves submodules out"
			return nil, hintError{fmt.Errorf("no url found for submodule path %q in .gitmodules", l.path), hint}
		}
		l.remote = relativeTo(r.remote, m["url"])
		kept = append(kept, l)
	}
	return kept, nil
}

// modules reads .gitmodules: what it says by path.
func (r *repo) modules(ctx context.Context, bare, commit string) (map[string]map[string]string, error) {
	about, err := r.git(ctx, nil, "--git-dir="+bare, "ls-tree", "--full-tree", commit, "--", ".gitmodules")
	if err != nil || about == "" {
		return nil, err
	}
	if !strings.HasPrefix(about, "100") {
		return nil, errors.New(".gitmodules is not a file")
	}
	out, err := r.git(ctx, nil, "--git-dir="+bare, "config", "--no-includes", "-z", "--blob", commit+":.gitmodules", "--list")
	if err != nil {
		return nil, err
	}
	return parseModules(out), nil
}

// parseModules reads "submodule.<name>.<key>\n<value>\0".
func parseModules(out string) map[string]map[string]string {
	byName, byPath := map[string]map[string]string{}, map[string]map[string]string{}
	for entry := range strings.SplitSeq(out, "\x00") {
		key, value, _ := strings.Cut(entry, "\n")
		rest, ok := strings.CutPrefix(key, "submodule.")
		dot := strings.LastIndexByte(rest, '.')
		if !ok || dot < 0 {
			continue
		}
		name := rest[:dot]
		if byName[name] == nil {
			byName[name] = map[string]string{}
		}
		byName[name][rest[dot+1:]] = value
	}
	for _, m := range byName {
		byPath[m["path"]] = m
	}
	return byPath
}

// relativeTo resolves a submodule's address, which may be relative to its parent's (gitmodules(5)).
func relativeTo(parent, address string) string {
	if !strings.HasPrefix(address, "./") && !strings.HasPrefix(address, "../") {
		return address
	}
	base, glue := strings.TrimRight(parent, "/"), "/"
	for {
		if rest, ok := strings.CutPrefix(address, "./"); ok {
			address = rest
			continue
		}
		rest, ok := strings.CutPrefix(address, "../")
		if !ok {
			return strings.TrimRight(base+glue+address, "/")
		}
		address = rest
		switch i := strings.LastIndexAny(base, "/:"); {
		case i < 0 || strings.HasSuffix(base[:i+1], "://"):
			return "" // above the host
		default:
			base, glue = base[:i], base[i:i+1]
		}
	}
}

// onlyDirs makes sure that no part of a path inside a directory is a link.
func onlyDirs(dir, p string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	at := "."
	for part := range strings.SplitSeq(p, "/") {
		at = path.Join(at, part)
		st, err := root.Lstat(at)
		if err != nil {
			return fmt.Errorf("directory %q of the repository: %w", p, unwrapPath(err))
		}
		if !st.IsDir() {
			return fmt.Errorf("directory %q of the repository: %q is no directory", p, at)
		}
	}
	return nil
}

func unwrapPath(err error) error {
	var known *fs.PathError
	if errors.As(err, &known) {
		return known.Err
	}
	return err
}

// raise moves what is in a directory of a checkout to dir, and removes the rest.
func raise(dir, work, subdir string) error {
	if err := onlyDirs(work, subdir); err != nil {
		return err
	}
	from := filepath.Join(work, subdir)
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.Rename(filepath.Join(from, e.Name()), filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return os.RemoveAll(work)
}

// settle makes modes what git says, whatever the caller's umask, and gives everything one time unless that is zero.
func settle(dir string, mtime time.Time) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.Type()&fs.ModeSymlink == 0 {
			if err := settleMode(p, d); err != nil {
				return err
			}
		}
		if d.IsDir() {
			dirs = append(dirs, p)
			return nil
		}
		return setTime(p, mtime)
	})
	for i := len(dirs) - 1; i >= 0 && err == nil; i-- {
		err = setTime(dirs[i], mtime)
	}
	return err
}

func settleMode(p string, d fs.DirEntry) error {
	st, err := d.Info()
	if err != nil {
		return err
	}
	// All may read what the owner may, and run it; only the owner may write.
	mode := st.Mode().Perm()&0o200 | 0o444
	if st.Mode()&0o100 != 0 || d.IsDir() {
		mode |= 0o111
	}
	if mode == st.Mode().Perm() {
		return nil
	}
	return os.Chmod(p, mode)
}

func setTime(p string, t time.Time) error {
	if t.IsZero() {
		return nil
	}
	ts := unix.NsecToTimespec(t.UnixNano())
	return unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}
