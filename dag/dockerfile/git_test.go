package dockerfile

import (
	"strings"
	"testing"

	"img/dag"
)

const (
	sha1Commit   = "0123456789012345678901234567890123456789"
	sha256Commit = sha1Commit + "012345678901234567890123"
)

func TestParseGit(t *testing.T) {
	for text, want := range map[string]dag.Git{
		"https://h/r.git":                               {Remote: "https://h/r.git"},
		"http://h:8080/a/r.git#main":                    {Remote: "http://h:8080/a/r.git", Ref: "main"},
		"HTTPS://h/r.git":                               {Remote: "https://h/r.git"},
		"https://u:p@h/r.git#v1:sub/dir":                {Remote: "https://u:p@h/r.git", Ref: "v1", Subdir: "sub/dir"},
		"https://h/r.git#:sub":                          {Remote: "https://h/r.git", Subdir: "sub"},
		"https://h/r.git#main:/../x/./y/":               {Remote: "https://h/r.git", Ref: "main", Subdir: "x/y"},
		"https://h/r.git#main:":                         {Remote: "https://h/r.git", Ref: "main"},
		"https://h/r.git#refs/pull/1/head":              {Remote: "https://h/r.git", Ref: "refs/pull/1/head"},
		"git://h/r":                                     {Remote: "git://h/r"},
		"ssh://git@h:2222/r#x":                          {Remote: "ssh://git@h:2222/r", Ref: "x"},
		"git@h:a/r.git":                                 {Remote: "git@h:a/r.git"},
		"me@h.example:r#main:d":                         {Remote: "me@h.example:r", Ref: "main", Subdir: "d"},
		"git@h:r.git?branch=x&subdir=d":                 {Remote: "git@h:r.git", Ref: "refs/heads/x", Subdir: "d"},
		"https://h/r.git?ref=main":                      {Remote: "https://h/r.git", Ref: "main"},
		"https://h/r.git?ref=main#main":                 {Remote: "https://h/r.git", Ref: "main"},
		"https://h/r.git?tag=v1":                        {Remote: "https://h/r.git", Ref: "refs/tags/v1"},
		"https://h/r.git?tag=refs/tags/v1":              {Remote: "https://h/r.git", Ref: "refs/tags/v1"},
		"https://h/r.git?branch=x":                      {Remote: "https://h/r.git", Ref: "refs/heads/x"},
		"https://h/r.git?ref=refs/heads/x&branch=x":     {Remote: "https://h/r.git", Ref: "refs/heads/x"},
		"https://h/r.git?subdir=/a/b/":                  {Remote: "https://h/r.git", Subdir: "a/b"},
		"https://h/r.git?subdir=a#:a":                   {Remote: "https://h/r.git", Subdir: "a"},
		"https://h/r.git?checksum=ABcd12":               {Remote: "https://h/r.git", Checksum: "ABcd12"},
		"https://h/r.git?commit=abcd&checksum=abcd":     {Remote: "https://h/r.git", Checksum: "abcd"},
		"https://h/r.git?keep-git-dir":                  {Remote: "https://h/r.git", KeepGitDir: true},
		"https://h/r.git?keep-git-dir=1":                {Remote: "https://h/r.git", KeepGitDir: true},
		"https://h/r.git?keep-git-dir=false":            {Remote: "https://h/r.git"},
		"https://h/r.git?submodules":                    {Remote: "https://h/r.git"},
		"https://h/r.git?submodules=false":              {Remote: "https://h/r.git", SkipSubmodules: true},
		"https://h/r.git?mtime=checkout":                {Remote: "https://h/r.git"},
		"https://h/r.git?mtime=commit":                  {Remote: "https://h/r.git", MTime: "commit"},
		"https://h/r.git?fetch-by-commit#" + sha1Commit: {Remote: "https://h/r.git", Ref: sha1Commit, FetchByCommit: true},
		"https://h/r.git?fetch-by-commit=true&commit=" + sha256Commit + "&ref=x": {Remote: "https://h/r.git", Ref: "x", Checksum: sha256Commit,
			FetchByCommit: true},
		"https://h/r.git?commit=0123#" + sha1Commit: {Remote: "https://h/r.git", Ref: sha1Commit, Checksum: "0123"},
	} {
		g, err := ParseGit(text, false)
		if err != nil || g == nil || *g != want {
			t.Errorf("%s is %+v, %v; want %+v", text, g, err, want)
		}
	}
}

// What is no repository for an ADD, and perhaps for a context.
func TestNotGit(t *testing.T) {
	for text, context := range map[string]string{
		"":                           "",
		"a":                          "",
		"./r.git":                    "",
		"../git@h:r":                 "",
		"/srv/r.git":                 "",
		"r.git":                      "",
		"file:///srv/r.git":          "",
		"ext::sh -c x":               "",
		"https://h/r":                "",
		"https://h/r.git/archive.gz": "",
		"https://h/x?y=r.git":        "",
		"ftp://h/r.git":              "",
		"h:r.git":                    "",
		"a.b@h:r.git":                "",
		"-x@":                        "",
		"github.com/org/repo":        "https://github.com/org/repo",
		"github.com/org/repo.git#x":  "https://github.com/org/repo.git",
		"github.community/a":         "",
		"https://h/r.git%zz":         "",
	} {
		if g, err := ParseGit(text, false); g != nil || err != nil {
			t.Errorf("an ADD takes %q for %+v, %v", text, g, err)
		}
		g, err := ParseGit(text, true)
		if err != nil || (g != nil) != (context != "") || g != nil && g.Remote != context {
			t.Errorf("a context takes %q for %+v, %v", text, g, err)
		}
	}
}

func TestParseGitErrors(t *testing.T) {
	for text, want := range map[string]string{
		"https://h/r.git?x=1":                        `unexpected query "x"`,
		"https://h/r.git?ref":                        `query "ref" has no value`,
		"https://h/r.git?subdir=":                    `query "subdir" has no value`,
		"https://h/r.git?tag":                        `query "tag" has no value`,
		"https://h/r.git?commit":                     `query "commit" has no value`,
		"https://h/r.git?ref=a&ref=b":                `query "ref" has multiple values`,
		"https://h/r.git?ref=a#b":                    `ref conflicts: "b" vs "a"`,
		"https://h/r.git?tag=a#a":                    `ref conflicts: "a" vs "refs/tags/a"`,
		"https://h/r.git?ref=a&branch=b":             `ref conflicts: "a" vs "refs/heads/b"`,
		"https://h/r.git?tag=a&branch=a":             `branch conflicts with tag`,
		"https://h/r.git?subdir=a#:b":                `subdir conflicts: "b" vs "a"`,
		"https://h/r.git?commit=a&checksum=b":        `checksum conflicts`,
		"https://h/r.git?checksum=xyz":               `expected hex commit hash`,
		"https://h/r.git?keep-git-dir=maybe":         `invalid keep-git-dir value: "maybe"`,
		"https://h/r.git?submodules=2":               `invalid submodules value: "2"`,
		"https://h/r.git?mtime=now":                  `invalid mtime value: "now"`,
		"https://h/r.git?mtime":                      `invalid mtime value: ""`,
		"https://h/r.git?fetch-by-commit=x":          `invalid fetch-by-commit value`,
		"https://h/r.git?fetch-by-commit":            `fetch-by-commit requires a checksum`,
		"https://h/r.git?fetch-by-commit&commit=abc": `fetch-by-commit requires a full commit SHA`,
		"https://h/r.git?commit=1#" + sha1Commit:     `expected checksum to match 1, got ` + sha1Commit,
		"https://h/r.git?a;b":                        `query of the git address`,
		"https://h/r.git#--upload-pack=x":            `invalid git ref "--upload-pack=x"`,
		"https://h/r.git#a b":                        `invalid git ref "a b"`,
		"https://h/r.git#a..b":                       `invalid git ref`,
		"https://h/r.git#+a":                         ``,
		"https://h/r.git#a*":                         `invalid git ref`,
		"https://h/r.git?branch=-x":                  ``,
		"git@h:r#@{-1}":                              `invalid git ref`,
		"ssh://-oProxyCommand=x/r.git":               `invalid git address`,
		"git@-h:r":                                   `invalid git address`,
		"git@h:-r":                                   `invalid git address`,
		"git:///r":                                   `names no host`,
		"https:///r.git":                             `names no host`,
	} {
		g, err := ParseGit(text, false)
		if want == "" {
			if err != nil {
				t.Errorf("%s: %v", text, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s is %+v, %v; want %q", text, g, err, want)
		}
	}
}

// Whatever the text, git gets no option, no pattern and no way out of the repository.
func FuzzParseGit(f *testing.F) {
	for _, seed := range []string{
		"https://u:p@h:1/r.git?ref=a&subdir=b&checksum=00&keep-git-dir&submodules=false&mtime=commit&fetch-by-commit=0#a:b", "git@h:r.git?tag=v1#:..",
		"github.com/a/b#c:d", "ssh://-o/x", "git@h:-x", "https://h/%2e%2e/r.git#%2e%2e", "git://[::1]/x#-", "https://h/r.git?branch=%00",
	} {
		f.Add(seed, true)
		f.Add(seed, false)
	}
	f.Fuzz(func(t *testing.T, text string, context bool) {
		g, err := ParseGit(text, context)
		if g == nil || err != nil {
			return
		}
		for what, s := range map[string]string{"remote": g.Remote, "ref": g.Ref, "subdir": g.Subdir} {
			if strings.HasPrefix(s, "-") && what != "subdir" || strings.ContainsAny(s, "\r\n\x00") && what != "subdir" {
				t.Errorf("%q: %s is %q", text, what, s)
			}
		}
		if s := "/" + g.Subdir + "/"; strings.Contains(s, "/../") || strings.Contains(g.Subdir, "//") || strings.HasPrefix(g.Subdir, "/") {
			t.Errorf("%q: subdir is %q", text, g.Subdir)
		}
		if strings.ContainsAny(g.Ref, "*?[:^~ ") || strings.Contains(g.Ref, "..") {
			t.Errorf("%q: ref is %q", text, g.Ref)
		}
	})
}
