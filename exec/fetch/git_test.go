package fetch

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"img/dag"
)

// A forge is a directory of repositories that are served over HTTP.
type forge struct {
	*site
	t   *testing.T
	dir string
}

// newForge serves repositories by git's own program, or as plain files.
func newForge(t *testing.T, dumb bool) *forge {
	t.Helper()
	f := &forge{t: t, dir: t.TempDir()}
	var h http.Handler = &cgi.Handler{Path: "/usr/lib/git-core/git-http-backend", Env: []string{
		"GIT_PROJECT_ROOT=" + f.dir, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_NOSYSTEM=1", "HOME=" + f.dir, "REMOTE_USER="}}
	if dumb {
		h = http.FileServer(http.Dir(f.dir))
	}
	f.site = serve(t, func(w http.ResponseWriter, r *http.Request) {
		if v := r.Header.Get("Git-Protocol"); v != "" && !dumb {
			c := *h.(*cgi.Handler)
			c.Env = append(slices.Clone(c.Env), "GIT_PROTOCOL="+v)
			c.ServeHTTP(w, r)
			return
		}
		h.ServeHTTP(w, r)
	})
	return f
}

// git runs git on a repository of the forge.
func (f *forge) git(repo string, args ...string) string {
	f.t.Helper()
	return f.gitWith(repo, "", args...)
}

// gitWith runs git with an input.
func (f *forge) gitWith(repo, input string, args ...string) string {
	f.t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Stdin = strings.NewReader(input)
	cmd.Dir = filepath.Join(f.dir, repo)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + f.dir, "GIT_CONFIG_NOSYSTEM=1", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b",
		"GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b", "GIT_AUTHOR_DATE=1000000000 +0000", "GIT_COMMITTER_DATE=1000000000 +0000",
		"GIT_ALLOW_PROTOCOL=file:http"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		f.t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// commit makes a repository name.git, or adds to it, with files as "path=content"; "path->target" is a link, "path*content" a program.
func (f *forge) commit(name string, files ...string) string {
	f.t.Helper()
	work := filepath.Join(f.dir, name)
	if err := os.MkdirAll(work, 0o755); err != nil {
		f.t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(work, ".git")); err != nil {
		f.git(name, "init", "-q", "-b", "main")
	}
	for _, file := range files {
		f.write(work, file)
	}
	f.git(name, "add", "-A")
	f.git(name, "commit", "-q", "--allow-empty", "-m", "c")
	f.publish(name)
	return f.git(name, "rev-parse", "HEAD")
}

func (f *forge) write(work, file string) {
	i := strings.IndexAny(file, "=*-")
	p := filepath.Join(work, file[:i])
	err := os.MkdirAll(filepath.Dir(p), 0o755)
	os.Remove(p)
	switch file[i] {
	case '=':
		err = errors.Join(err, os.WriteFile(p, []byte(file[i+1:]), 0o644))
	case '*':
		err = errors.Join(err, os.WriteFile(p, []byte(file[i+1:]), 0o755))
	case '-':
		err = errors.Join(err, os.Symlink(file[i+2:], p))
	}
	if err != nil {
		f.t.Fatal(err)
	}
}

// publish makes what is in a work tree's repository what is served.
func (f *forge) publish(name string) {
	f.t.Helper()
	bare := name + ".git"
	if _, err := os.Stat(filepath.Join(f.dir, bare)); err != nil {
		f.git("", "clone", "-q", "--bare", name, bare)
	}
	f.git(name, "push", "-q", "--mirror", "../"+bare)
	f.git(bare, "update-server-info")
}

func (f *forge) url(name string) string { return f.URL + "/" + name + ".git" }

// fetched checks out and lists what there is: "path mode content".
func fetched(t *testing.T, c *Client, g *dag.Git) (string, string, error) {
	t.Helper()
	commit, err := c.ResolveGit(t.Context(), g)
	if err != nil {
		return "", "", err
	}
	dir := t.TempDir()
	err = c.Checkout(t.Context(), g, commit, dir)
	return list(t, dir), dir, err
}

func list(t *testing.T, dir string) string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		st, err := d.Info()
		if err != nil {
			return err
		}
		switch {
		case d.IsDir() && d.Name() == ".git":
			out = append(out, rel+"/")
			return fs.SkipDir
		case d.IsDir():
			if st.Mode().Perm() != 0o755 {
				out = append(out, fmt.Sprintf("%s/ %o", rel, st.Mode().Perm()))
			}
		case d.Type() == fs.ModeSymlink:
			to, _ := os.Readlink(p)
			out = append(out, rel+" -> "+to)
		default:
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			out = append(out, fmt.Sprintf("%s %o %s", rel, st.Mode().Perm(), data))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(out, "\n")
}

func TestRefs(t *testing.T) {
	for _, dumb := range []bool{false, true} {
		t.Run(fmt.Sprintf("dumb=%v", dumb), func(t *testing.T) {
			f := newForge(t, dumb)
			one := f.commit("r", "a=1")
			f.git("r", "branch", "old")
			f.git("r", "tag", "light")
			f.git("r", "tag", "-a", "-m", "t", "v1")
			f.git("r", "tag", "both")
			two := f.commit("r", "a=2")
			f.git("r", "branch", "both")
			f.git("r", "branch", "feature/x")
			f.publish("r")
			tag := f.git("r", "rev-parse", "v1")
			dir := t.TempDir()
			for _, tc := range []struct{ ref, sum, id, full, tag string }{
				{"", "", two, "refs/heads/main", ""},
				{"HEAD", "", two, "refs/heads/main", ""},
				{"main", "", two, "refs/heads/main", ""},
				{"refs/heads/old", "", one, "refs/heads/old", ""},
				{"heads/old", "", one, "refs/heads/old", ""},
				{"feature/x", "", two, "refs/heads/feature/x", ""},
				{"light", "", one, "refs/tags/light", ""},
				{"v1", "", one, "refs/tags/v1", tag},
				{"refs/tags/v1", "", one, "refs/tags/v1", tag},
				{"v1", one[:10], one, "refs/tags/v1", tag},
				{"v1", tag, one, "refs/tags/v1", tag},
				{"both", "", two, "refs/heads/both", ""},
				{one, "", one, "", ""},
				{two, two, two, "", ""},
				{one[:12], "", one, "", ""},
			} {
				g := &dag.Git{Remote: f.url("r"), Ref: tc.ref, Checksum: tc.sum}
				commit, err := New(dir, Options{}).ResolveGit(t.Context(), g)
				if want := (Commit{tc.id, tc.full, tc.tag}); err != nil || commit != want {
					t.Errorf("%q is %v, %v; want %v", tc.ref, commit, err, want)
				}
				want := map[string]string{one: "a 644 1", two: "a 644 2"}[tc.id]
				if got, _, err := fetched(t, New(dir, Options{}), g); err != nil || got != want {
					t.Errorf("%q has %q, %v; want %q", tc.ref, got, err, want)
				}
			}
			for ref, want := range map[string]string{
				"gone": "does not contain ref gone", "-x": "", "--upload-pack=touch x": "", strings.Repeat("0", 40): "does not contain", "ab": "does not contain",
			} {
				_, _, err := fetched(t, New(dir, Options{}), &dag.Git{Remote: f.url("r"), Ref: ref})
				var e *Error
				if !errors.As(err, &e) || !strings.Contains(err.Error(), want) {
					t.Errorf("%q: %v", ref, err)
				}
			}
			_, _, err := fetched(t, New(dir, Options{}), &dag.Git{Remote: f.url("r"), Ref: "v1", Checksum: "0123"})
			if err == nil || !strings.Contains(err.Error(), "expected checksum to match 0123, got "+tag+" or "+one) {
				t.Error(err)
			}
		})
	}
}

// What is remembered needs no network: a whole commit never, a branch with --offline. A Client asks once.
func TestRemembered(t *testing.T) {
	f := newForge(t, false)
	one := f.commit("r", "a=1")
	dir := t.TempDir()
	main := &dag.Git{Remote: f.url("r"), Ref: "main"}
	if _, _, err := fetched(t, New(dir, Options{}), main); err != nil {
		t.Fatal(err)
	}
	before := len(f.requests())
	for _, g := range []*dag.Git{{Remote: f.url("r"), Ref: one}, {Remote: f.url("r"), FetchByCommit: true, Checksum: one, Ref: "main"}} {
		if got, _, err := fetched(t, New(dir, Options{}), g); err != nil || got != "a 644 1" || len(f.requests()) != before {
			t.Errorf("%v: %q, %v after %d requests", g, got, err, len(f.requests())-before)
		}
	}
	two := f.commit("r", "a=2")
	if got, _, err := fetched(t, New(dir, Options{Offline: true}), main); err != nil || got != "a 644 1" || len(f.requests()) != before {
		t.Errorf("offline: %q, %v after %d requests", got, err, len(f.requests())-before)
	}
	for _, g := range []*dag.Git{{Remote: f.url("r"), Ref: two}, {Remote: f.url("r")}, {Remote: f.url("x"), Ref: "main"}} {
		if _, _, err := fetched(t, New(dir, Options{Offline: true}), g); err == nil || !strings.Contains(err.Error(), "not fetched before") {
			t.Errorf("offline, never fetched: %v", err)
		}
	}
	c := New(dir, Options{})
	for range 2 {
		if got, _, err := fetched(t, c, main); err != nil || got != "a 644 2" {
			t.Errorf("%q, %v", got, err)
		}
		f.commit("r", "a=3") // a build sees one state of the remote
	}
	f.git("r", "checkout", "-q", "--orphan", "fresh")
	f.git("r", "branch", "-D", "main")
	f.git("r", "branch", "-m", "main")
	f.commit("r", "a=new history")
	if got, _, err := fetched(t, New(dir, Options{}), main); err != nil || got != "a 644 new history" {
		t.Errorf("after a forced push: %q, %v", got, err)
	}
}

func TestCheckout(t *testing.T) {
	f := newForge(t, false)
	f.commit("r", "a=1", "bin/p*#!", "bin/l->../a", "d/e/f=2", "crlf=x\r\n", "big=version https://git-lfs.github.com/spec/v1", ".gitattributes=big filter=lfs")
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	c := New(t.TempDir(), Options{})
	got, dir, err := fetched(t, c, &dag.Git{Remote: f.url("r"), MTime: "commit"})
	const want = ".gitattributes 644 big filter=lfs\na 644 1\nbig 644 version https://git-lfs.github.com/spec/v1\nbin/l -> ../a\nbin/p 755 #!\ncrlf 644 x\r\n\nd/e/f 644 2"
	if err != nil || got != want {
		t.Errorf("%v\n%s\nwant\n%s", err, got, want)
	}
	for _, name := range []string{".", "a", "bin/l", "d/e"} {
		if st, err := os.Lstat(filepath.Join(dir, name)); err != nil || st.ModTime().Unix() != 1e9 {
			t.Errorf("%s has the time %v, %v", name, st.ModTime(), err)
		}
	}
	for subdir, want := range map[string]string{"d": "e/f 644 2", "d/e": "f 644 2", "/d/../bin": "l -> ../a\np 755 #!"} {
		got, dir, err := fetched(t, c, &dag.Git{Remote: f.url("r"), Subdir: subdir})
		if err != nil || got != want {
			t.Errorf("%s: %v\n%s", subdir, err, got)
		}
		if st, err := os.Lstat(dir); err != nil || time.Since(st.ModTime()) > time.Hour {
			t.Errorf("%s: time %v, %v", subdir, st.ModTime(), err)
		}
	}
	for subdir, want := range map[string]string{"a": `"a" is no directory`, "gone": "no such file", "bin/l": "is no directory"} {
		if _, _, err := fetched(t, c, &dag.Git{Remote: f.url("r"), Subdir: subdir}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", subdir, err)
		}
	}
}

// A directory of the repository that is a link leads nowhere.
func TestLinkedSubdir(t *testing.T) {
	f := newForge(t, false)
	f.commit("r", "etc->/etc", "up->../..", "d/self->.", "d/x=1")
	for _, subdir := range []string{"etc", "etc/ssl", "up", "d/self", "../../etc"} {
		got, _, err := fetched(t, New(t.TempDir(), Options{}), &dag.Git{Remote: f.url("r"), Subdir: subdir})
		if err == nil {
			t.Errorf("%s has %q", subdir, got)
		}
	}
}

func TestKeepGitDir(t *testing.T) {
	f := newForge(t, false)
	one := f.commit("r", "a=1")
	f.git("r", "tag", "-a", "-m", "t", "v1")
	f.commit("r", "a=2")
	u, err := url.Parse(f.url("r"))
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword("user", "s3cret")
	c := New(t.TempDir(), Options{})
	for ref, has := range map[string]string{"v1": "refs/tags/v1", "main": "refs/heads/main", "": "refs/heads/main", one: ""} {
		got, dir, err := fetched(t, c, &dag.Git{Remote: u.String(), Ref: ref, KeepGitDir: true})
		if err != nil || !strings.HasPrefix(got, ".git/\na 644 ") {
			t.Errorf("%q: %v\n%s", ref, err, got)
			continue
		}
		in := func(args ...string) string {
			out, err := exec.Command("git", append([]string{"-c", "safe.directory=*", "-C", dir}, args...)...).CombinedOutput()
			if err != nil {
				t.Errorf("git %v: %v %s", args, err, out)
			}
			return strings.TrimSpace(string(out))
		}
		if got := in("status", "--porcelain"); got != "" {
			t.Errorf("%q: status %s", ref, got)
		}
		if got := in("for-each-ref", "--format=%(refname)"); got != has {
			t.Errorf("%q: refs %q, want %q", ref, got, has)
		}
		if got := in("remote", "get-url", "origin"); got != f.url("r") {
			t.Errorf("%q: origin is %s", ref, got)
		}
		if out, err := exec.Command("grep", "-r", "-l", "s3cret", dir).Output(); err == nil {
			t.Errorf("%q: the password is in %s", ref, out)
		}
		if got := in("fsck"); strings.Contains(got, "missing") {
			t.Errorf("%q: fsck %s", ref, got)
		}
		for _, p := range []string{".git/hooks", ".git/logs", ".git/FETCH_HEAD", ".git/config.worktree"} {
			if _, err := os.Lstat(filepath.Join(dir, p)); err == nil {
				t.Errorf("%q: there is %s", ref, p)
			}
		}
	}
	if out, err := exec.Command("grep", "-r", "-l", "s3cret", c.dir).Output(); err == nil {
		t.Errorf("the password is in %s", out)
	}
}

func TestSubmodules(t *testing.T) {
	f := newForge(t, false)
	f.commit("deep", "z=deep")
	f.commit("sub", "s=sub")
	f.git("sub", "submodule", "--quiet", "add", "../deep.git", "nested")
	f.commit("sub")
	f.commit("r", "a=1")
	f.git("r", "remote", "add", "origin", f.url("r"))
	f.git("r", "submodule", "--quiet", "add", "../sub.git", "m/sub")
	f.git("r", "submodule", "--quiet", "add", f.url("deep"), "deep")
	f.commit("r")
	c := New(t.TempDir(), Options{})
	modules := func(got string) string {
		var kept []string
		for line := range strings.Lines(got) {
			if !strings.HasPrefix(line, "\t") && !strings.HasPrefix(line, ".gitmodules") && !strings.Contains(line, "/.gitmodules") && !strings.HasPrefix(line, "[") {
				kept = append(kept, strings.TrimSpace(line))
			}
		}
		return strings.Join(kept, "; ")
	}
	got, _, err := fetched(t, c, &dag.Git{Remote: f.url("r")})
	if want := "a 644 1; deep/z 644 deep; m/sub/nested/z 644 deep; m/sub/s 644 sub"; err != nil || !strings.Contains(modules(got), "deep/z 644 deep") || !strings.Contains(got, "m/sub/nested/z 644 deep") || !strings.Contains(got, "m/sub/s 644 sub") {
		t.Errorf("%v\n%s\nwant %s", err, modules(got), want)
	}
	if got, _, err := fetched(t, c, &dag.Git{Remote: f.url("r"), SkipSubmodules: true}); err != nil || strings.Contains(got, "/s 644") {
		t.Errorf("%v\n%s", err, got)
	}
	if got, _, err := fetched(t, c, &dag.Git{Remote: f.url("r"), Subdir: "m/sub"}); err != nil || !strings.Contains(got, "nested/z 644 deep") {
		t.Errorf("%v\n%s", err, got)
	}
	if got, _, err := fetched(t, c, &dag.Git{Remote: f.url("r"), KeepGitDir: true}); err != nil || !strings.Contains(got, "deep/z 644 deep") {
		t.Errorf("%v\n%s", err, got)
	}
}

// What .gitmodules says makes git run nothing, read nothing of this machine and write nothing outside of the checkout.
func TestHostileSubmodules(t *testing.T) {
	secret := t.TempDir()
	f := newForge(t, false)
	sub := f.commit("sub", "s=sub")
	for name, tc := range map[string]struct{ modules, at, err string }{
		"ext":          {"url = ext::sh -c 'touch " + secret + "/x'", "m", "git addresses are"},
		"file":         {"url = file://" + f.dir + "/sub.git", "m", "git addresses are"},
		"path":         {"url = " + f.dir + "/sub.git", "m", "git addresses are"},
		"dash":         {"url = -u./x", "m", "begins with a dash"},
		"ssh option":   {"url = ssh://-oProxyCommand=touch/x", "m", "invalid git address"},
		"scp option":   {"url = -oProxyCommand=touch:x", "m", "begins with a dash"},
		"above":        {"url = ../../../../x", "m", "git addresses are"},
		"newline":      {`url = "http://h/\n-x"`, "m", "control characters"},
		"no url":       {"", "m", "no url found"},
		"other path":   {"url = " + f.url("sub") + "\n\tpath = other", "m", "no url found"},
		"name":         {"url = " + f.url("sub"), "m", ""},
		"update":       {"url = " + f.url("sub") + "\n\tupdate = !touch " + secret + "/x", "m", ""},
		"update none":  {"url = " + f.url("gone") + "\n\tupdate = none", "m", ""},
		"include":      {"url = " + f.url("sub") + "\n[include]\n\tpath = " + secret + "/config", "m", ""},
		"wrong commit": {"url = " + f.url("sub"), "gone", "does not contain commit"},
	} {
		t.Run(name, func(t *testing.T) {
			r := strings.ReplaceAll("r "+name, " ", "")
			f.commit(r, "a=1", ".gitmodules=[submodule \"../../x\"]\n\tpath = m\n\t"+tc.modules+"\n")
			at := sub
			if tc.at == "gone" {
				at = strings.Repeat("1", 40)
			}
			f.git(r, "update-index", "--add", "--cacheinfo", "160000,"+at+",m")
			f.git(r, "commit", "-q", "-m", "link")
			f.publish(r)
			got, _, err := fetched(t, New(t.TempDir(), Options{}), &dag.Git{Remote: f.url(r)})
			if tc.err == "" && err != nil || tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
				t.Errorf("%v; want %q\n%s", err, tc.err, got)
			}
			if names, _ := os.ReadDir(secret); len(names) > 0 {
				t.Fatalf("it made %v", names)
			}
		})
	}
}

// A submodule in a circle ends.
func TestSubmoduleCircle(t *testing.T) {
	f := newForge(t, false)
	one := f.commit("r", "a=1", ".gitmodules=[submodule \"m\"]\n\tpath = m\n\turl = ./\n")
	for range maxDepth + 2 {
		f.git("r", "update-index", "--add", "--cacheinfo", "160000,"+one+",m")
		f.git("r", "commit", "-q", "-m", "link")
		one = f.git("r", "rev-parse", "HEAD")
	}
	f.publish("r")
	_, _, err := fetched(t, New(t.TempDir(), Options{}), &dag.Git{Remote: f.url("r")})
	if err == nil || !strings.Contains(err.Error(), "nested more than 16 deep") {
		t.Error(err)
	}
}

func TestAddresses(t *testing.T) {
	c := New(t.TempDir(), Options{})
	for address, ok := range map[string]bool{
		"http://h/r.git": true, "https://u:p@h/r": true, "ssh://git@h:22/r": true, "git://h/r": true, "git@h:r": true,
		"": false, "/srv/r.git": false, "file:///srv/r.git": false, "ext::sh": false, "ext::sh -c x@h:y": false, "ftp://h/r": false, "-x": false,
		"--upload-pack=x": false, "ssh://-oProxyCommand=x/r": false, "ssh://-u@h/r": false, "git@h:-x": false, "http:///r": false, "h:r": false,
		"http://h/\nr": false, "http:h/r": false, "fd::1": false, "javascript:x": false,
	} {
		if _, err := c.transport(address); (err == nil) != ok {
			t.Errorf("%q: %v", address, err)
		}
	}
}

func TestRelativeTo(t *testing.T) {
	for _, tc := range [][3]string{
		{"https://h/a/r.git", "../b.git", "https://h/a/b.git"},
		{"https://h/a/r.git", "../../b.git", "https://h/b.git"},
		{"https://h/a/r.git/", "./b", "https://h/a/r.git/b"},
		{"https://h/a", "../../../x", ""},
		{"git@h:a/r.git", "../b.git", "git@h:a/b.git"},
		{"git@h:r.git", "../b.git", "git@h:b.git"},
		{"https://h/r", "https://x/y", "https://x/y"},
		{"https://h/r", "/abs", "/abs"},
	} {
		if got := relativeTo(tc[0], tc[1]); got != tc[2] {
			t.Errorf("%s from %s is %s, want %s", tc[1], tc[0], got, tc[2])
		}
	}
}

// Credentials go to the host they are for, in no argument of any program, and no file.
func TestGitCredentials(t *testing.T) {
	f := newForge(t, false)
	f.commit("r", "a=1")
	other := newForge(t, false)
	other.commit("r", "a=other")
	inner := f.Server.Config.Handler
	want := ""
	guard := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != want {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if strings.HasPrefix(r.URL.Path, "/moved.git") {
			http.Redirect(w, r, strings.Replace(f.URL+r.URL.RequestURI(), "/moved.git", "/r.git", 1), http.StatusMovedPermanently)
			return
		}
		if strings.HasPrefix(r.URL.Path, "/away.git") {
			http.Redirect(w, r, strings.Replace(other.named()+r.URL.RequestURI(), "/away.git", "/r.git", 1), http.StatusMovedPermanently)
			return
		}
		inner.ServeHTTP(w, r)
	}))
	defer guard.Close()
	host := strings.TrimPrefix(guard.URL, "http://")
	const token = "Basic eC1hY2Nlc3MtdG9rZW46czNjcmV0" // x-access-token:s3cret
	for _, tc := range []struct {
		name, want, user string
		secrets          map[string]string
		ok               bool
	}{
		{"token", token, "", map[string]string{"GIT_AUTH_TOKEN": "s3cret\n"}, true},
		{"host's token", token, "", map[string]string{"GIT_AUTH_TOKEN." + host: "s3cret", "GIT_AUTH_TOKEN": "x"}, true},
		{"other host's token", token, "", map[string]string{"GIT_AUTH_TOKEN.example.com": "s3cret"}, false},
		{"header", "Basic abc", "", map[string]string{"GIT_AUTH_HEADER": "Basic abc", "GIT_AUTH_TOKEN": "x"}, true},
		{"address", "Basic dTpw", "u:p@", nil, true},
		{"none", token, "", nil, false},
		{"lines", token, "", map[string]string{"GIT_AUTH_TOKEN": "a", "GIT_AUTH_HEADER": "a\r\nX: y"}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			want = tc.want
			c := New(t.TempDir(), Options{Secret: secrets(tc.secrets)})
			for _, name := range []string{"r", "moved", "away"} {
				address := strings.Replace(guard.URL, "://", "://"+tc.user, 1) + "/" + name + ".git"
				got, _, err := fetched(t, c, &dag.Git{Remote: address})
				content := map[bool]string{true: "a 644 other", false: "a 644 1"}[name == "away"]
				if tc.ok && (err != nil || got != content) || !tc.ok && err == nil {
					t.Errorf("%s: %q, %v", name, got, err)
				}
				var e *Error
				if !tc.ok && tc.name != "lines" && (!errors.As(err, &e) || !strings.Contains(e.Remedy, "GIT_AUTH_TOKEN")) {
					t.Errorf("%s: %v has the remedy %q", name, err, e.Remedy)
				}
			}
			if out, err := exec.Command("grep", "-r", "-l", "-e", "s3cret", "-e", "czNjcmV0", c.dir).Output(); err == nil {
				t.Errorf("the secret is in %s", out)
			}
		})
	}
	for _, r := range append(f.requests(), other.requests()...) {
		if r.Header.Get("Authorization") != "" && r.Host != host {
			t.Errorf("%s was told %s", r.Host, r.Header.Get("Authorization"))
		}
	}
}

// The caller's environment and configuration do not count.
func TestNoConfiguration(t *testing.T) {
	f := newForge(t, false)
	f.commit("r", "a=1")
	home := t.TempDir()
	mark := filepath.Join(home, "ran")
	hook := filepath.Join(home, "post-checkout")
	script := "#!/bin/sh\ntouch " + mark + "\n"
	if err := os.WriteFile(hook, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf("[core]\n\thooksPath = %s\n\tsshCommand = %s\n\tfsmonitor = %s\n[url \"http://127.0.0.1:1/\"]\n\tinsteadOf = %s\n", home, hook, hook, f.URL)
	if err := os.WriteFile(filepath.Join(home, ".gitconfig"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	for k, v := range map[string]string{
		"HOME": home, "GIT_CONFIG_GLOBAL": filepath.Join(home, ".gitconfig"), "GIT_DIR": home, "GIT_SSH_COMMAND": hook, "GIT_EXTERNAL_DIFF": hook,
		"GIT_TEMPLATE_DIR": home, "GIT_EXEC_PATH": home, "GIT_PROXY_COMMAND": hook, "GIT_ASKPASS": hook,
	} {
		t.Setenv(k, v)
	}
	for _, keep := range []bool{false, true} {
		got, _, err := fetched(t, New(t.TempDir(), Options{}), &dag.Git{Remote: f.url("r"), KeepGitDir: keep})
		if err != nil || !strings.HasSuffix(got, "a 644 1") {
			t.Errorf("%q, %v", got, err)
		}
	}
	if _, err := os.Stat(mark); err == nil {
		t.Error("the caller's hook ran")
	}
}

func TestNoGit(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := New(t.TempDir(), Options{}).ResolveGit(t.Context(), &dag.Git{Remote: "git://h/r"})
	var e *Error
	if !errors.As(err, &e) || err.Error() != "fetch git://h/r: the program git is not installed" || e.Remedy == "" {
		t.Error(err)
	}
}

func TestSSHNeedsAgent(t *testing.T) {
	_, err := New(t.TempDir(), Options{}).ResolveGit(t.Context(), &dag.Git{Remote: "git@h:r.git"})
	var e *Error
	if !errors.As(err, &e) || !strings.Contains(e.Remedy, "--ssh default") {
		t.Error(err)
	}
}

// A killed process leaves locks and half files in a repository; the next one goes on.
func TestKilled(t *testing.T) {
	f := newForge(t, false)
	f.commit("r", "a=1")
	dir := t.TempDir()
	c := New(dir, Options{})
	g := &dag.Git{Remote: f.url("r")}
	if _, _, err := fetched(t, c, g); err != nil {
		t.Fatal(err)
	}
	repo := filepath.Join(c.repo(g.Remote, g.Remote).dir, "sha1")
	names := []string{"shallow.lock", "HEAD.lock", "config.lock", "packed-refs.lock", "refs/img/incoming.lock", "objects/pack/tmp_pack_x", "../index.lock", "../.tmp-x"}
	for _, name := range names {
		p := filepath.Join(repo, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte("x"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(repo+".new/objects", 0o755); err != nil {
		t.Fatal(err)
	}
	f.commit("r", "a=2")
	if got, _, err := fetched(t, New(dir, Options{}), g); err != nil || got != "a 644 2" {
		t.Errorf("%q, %v", got, err)
	}
	for _, name := range names {
		if _, err := os.Stat(filepath.Join(repo, name)); err == nil {
			t.Error(name, "is left")
		}
	}
}

// A few kilobytes of trees can name themselves again and again: what they stand for is counted before it is written.
func TestTreeBomb(t *testing.T) {
	defer func(n int) { maxEntries = n }(maxEntries)
	maxEntries = 10_000
	f := newForge(t, false)
	for name, leaf := range map[string]string{"files": "100644 blob", "empty": "040000 tree"} {
		f.commit(name, "f=x")
		id := f.git(name, "rev-parse", "HEAD:f")
		if name == "empty" {
			id = f.git(name, "hash-object", "-w", "-t", "tree", "/dev/null")
		}
		for range 8 {
			var lines strings.Builder
			for i := range 10 {
				fmt.Fprintf(&lines, "%s %s\tn%d\n", leaf, id, i)
			}
			id, leaf = f.gitWith(name, lines.String(), "mktree"), "040000 tree"
		}
		f.git(name, "update-ref", "refs/heads/main", f.git(name, "commit-tree", "-m", "bomb", id))
		f.publish(name)
		dir := t.TempDir()
		_, _, err := fetched(t, New(dir, Options{}), &dag.Git{Remote: f.url(name)})
		if err == nil || !strings.Contains(err.Error(), "more than 10000 files and directories") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// git's own protocol, as its daemon speaks it.
func TestDaemon(t *testing.T) {
	f := newForge(t, false)
	f.commit("r", "a=1")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() { // inetd
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			file, err := conn.(*net.TCPConn).File()
			conn.Close()
			if err != nil {
				return
			}
			cmd := exec.Command("git", "daemon", "--inetd", "--export-all", "--base-path="+f.dir)
			cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + f.dir}
			cmd.Stdin, cmd.Stdout = file, file
			go func() { cmd.Run(); file.Close() }()
		}
	}()
	got, _, err := fetched(t, New(t.TempDir(), Options{}), &dag.Git{Remote: "git://" + l.Addr().String() + "/r.git"})
	if err != nil || got != "a 644 1" {
		t.Errorf("%q, %v", got, err)
	}
}

// git's ssh gets the agent that was given and nothing else of the caller's: no configuration, no key, no unknown host.
func TestSSH(t *testing.T) {
	f := newForge(t, false)
	f.commit("r", "a=1")
	bin := t.TempDir()
	log := filepath.Join(bin, "log")
	script := fmt.Sprintf("#!/bin/sh\nfor a; do echo \"$a\" >> %s; last=$a; done\necho $SSH_AUTH_SOCK $HOME >> %s\ncd %s && eval \"git -c safe.directory=* ${last#git-}\"\n", log, log, f.dir)
	if err := os.WriteFile(filepath.Join(bin, "ssh"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	c := New(t.TempDir(), Options{SSHAgent: "/run/agent", KnownHosts: []string{"/etc/k", "/home/it's me/known_hosts"}})
	got, _, err := fetched(t, c, &dag.Git{Remote: "git@h.test:r.git"})
	if err != nil || got != "a 644 1" {
		t.Errorf("%q, %v", got, err)
	}
	said, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"-F\n/dev/null\n", "-o\nBatchMode=yes\n", "-o\nStrictHostKeyChecking=yes\n", "-o\nUserKnownHostsFile=\"/etc/k\" \"/home/it's me/known_hosts\"\n",
		"-o\nIdentityFile=none\n", "git@h.test\n", "/run/agent /dev/null\n",
	} {
		if !strings.Contains(string(said), want) {
			t.Errorf("ssh was not told %q, but\n%s", want, said)
		}
	}
}
