package dockerfile

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"img/dag"
)

// A gitSource is a repository as an ADD or a build context names it.
type gitSource struct {
	dag.Git
	// keep is what the address says about .git, nil if nothing.
	keep *bool
}

// ParseGit reads the address of a git repository, with the revision and directory that it names. It returns nil for text that names
// none, and an error for one that is wrong.
//
// A build context may also be "github.com/org/repo", which for an ADD is a local path.
func ParseGit(text string, context bool) (*dag.Git, error) {
	g, err := parseGit(text, context)
	if g == nil || err != nil {
		return nil, err
	}
	return &g.Git, nil
}

// isGit reports whether an ADD takes text for a repository, a wrong address or not.
func isGit(text string) bool {
	g, err := parseGit(text, false)
	return g != nil || err != nil
}

var (
	scheme = regexp.MustCompile(`^[a-zA-Z0-9]+://`)
	// scpForm is git's short form of ssh: user@host:path, here with a query and a fragment.
	scpForm = regexp.MustCompile(`^([a-zA-Z0-9_-]+)@([a-zA-Z0-9.-]+):([^?#]*)(?:\?([^#]*))?(?:#(.*))?$`)
)

// An address is a git address in its parts.
type address struct {
	remote, host, path, query, fragment string
}

func parseGit(text string, context bool) (*gitSource, error) {
	a, ok := splitAddress(text, context)
	if !ok {
		return nil, nil
	}
	if err := a.check(); err != nil {
		return nil, err
	}
	g := &gitSource{Git: dag.Git{Remote: a.remote}}
	if a.fragment != "" {
		g.Ref, g.Subdir, _ = strings.Cut(a.fragment, ":")
		g.Subdir = cleanSubdir(g.Subdir)
	}
	query, err := url.ParseQuery(a.query)
	if err != nil {
		return nil, fmt.Errorf("query of the git address: %w", err)
	}
	if err := g.readQuery(query); err != nil {
		return nil, err
	}
	_, err = g.Check()
	return g, err
}

// splitAddress cuts an address into its parts; ok is false if it is none.
func splitAddress(text string, context bool) (a address, ok bool) {
	if m := scpForm.FindStringSubmatch(text); m != nil && !scheme.MatchString(text) {
		return address{remote: m[1] + "@" + m[2] + ":" + m[3], host: m[2], path: m[3], query: m[4], fragment: m[5]}, true
	}
	if context && strings.HasPrefix(text, "github.com/") {
		text = "https://" + text
	} else if context = false; !scheme.MatchString(text) {
		return a, false
	}
	u, err := url.Parse(text)
	if err != nil {
		return a, false
	}
	switch u.Scheme {
	case "http", "https":
		// Only its name tells a repository from any other URL.
		if !context && !strings.HasSuffix(u.Path, ".git") {
			return a, false
		}
	case "git", "ssh":
	default:
		return a, false
	}
	a = address{host: u.Hostname(), path: u.Path, query: u.RawQuery, fragment: u.Fragment}
	u.RawQuery, u.ForceQuery, u.Fragment, u.RawFragment = "", false, "", ""
	a.remote = u.String()
	return a, true
}

// check refuses what git, or ssh below it, could take for an option.
func (a address) check() error {
	switch {
	case a.host == "":
		return errors.New("the git address names no host")
	case strings.HasPrefix(a.host, "-") || strings.HasPrefix(a.path, "-"):
		return fmt.Errorf("invalid git address %q", a.remote)
	}
	for _, r := range a.remote {
		if r < ' ' || r == 0x7f {
			return fmt.Errorf("invalid git address %q", a.remote)
		}
	}
	return nil
}

func cleanSubdir(dir string) string { return strings.TrimPrefix(path.Join("/", dir), "/") }

// readQuery reads the keys of the query form.
func (g *gitSource) readQuery(query url.Values) error {
	refs := map[string]string{} // what ref, tag and branch say
	for _, key := range slices.Sorted(maps.Keys(query)) {
		if len(query[key]) != 1 {
			return fmt.Errorf("query %q has multiple values", key)
		}
		value := query[key][0]
		var err error
		switch key {
		case "ref", "tag", "branch":
			refs[key], err = value, needed(key, value)
		case "subdir":
			err = set("subdir", &g.Subdir, cleanSubdir(value), needed(key, value))
		case "checksum", "commit":
			err = set("checksum", &g.Checksum, value, needed(key, value))
		case "mtime":
			if value != "checkout" && value != "commit" {
				return fmt.Errorf("invalid mtime value: %q (must be %q or %q)", value, "checkout", "commit")
			}
			if value == "commit" {
				g.MTime = value
			}
		case "keep-git-dir":
			g.keep = new(bool)
			*g.keep, err = boolean(key, value)
			g.KeepGitDir = *g.keep
		case "submodules":
			var on bool
			on, err = boolean(key, value)
			g.SkipSubmodules = !on
		case "fetch-by-commit":
			g.FetchByCommit, err = boolean(key, value)
		default:
			return fmt.Errorf("unexpected query %q", key)
		}
		if err != nil {
			return err
		}
	}
	return g.readRefs(refs)
}

// readRefs brings together what the fragment, ref, tag and branch say.
func (g *gitSource) readRefs(refs map[string]string) error {
	if refs["tag"] != "" && refs["branch"] != "" {
		return errors.New("branch conflicts with tag")
	}
	for _, r := range []struct{ key, prefix string }{{"ref", ""}, {"tag", "refs/tags/"}, {"branch", "refs/heads/"}} {
		value := refs[r.key]
		if value == "" {
			continue
		}
		if err := set("ref", &g.Ref, r.prefix+strings.TrimPrefix(value, r.prefix), nil); err != nil {
			return err
		}
	}
	return nil
}

// needed is the error of a key without its value.
func needed(key, value string) error {
	if value == "" {
		return fmt.Errorf("query %q has no value", key)
	}
	return nil
}

// set gives a field a value; another value that it has already is an error.
func set(what string, field *string, value string, err error) error {
	if err == nil && *field != "" && *field != value {
		err = fmt.Errorf("%s conflicts: %q vs %q", what, *field, value)
	}
	*field = value
	return err
}

// boolean reads a boolean key, which may stand alone.
func boolean(key, value string) (bool, error) {
	if value == "" {
		return true, nil
	}
	on, err := strconv.ParseBool(value)
	if err != nil {
		return false, fmt.Errorf("invalid %s value: %q", key, value)
	}
	return on, nil
}
