package fetch

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"

	"img/dag"
)

// A Commit is what a revision of a repository is.
type Commit struct {
	// ID is the commit's name in hex.
	ID string
	// Ref is the full name of the branch or tag that was asked for, "" if it was a commit.
	Ref string
	// Tag is the name of the annotated tag's object, "" if there is none.
	Tag string
}

// ResolveGit finds the commit that a revision stands for. The remote is asked, once for each Client, unless the revision is a whole commit.
// Errors are an *Error.
func (c *Client) ResolveGit(ctx context.Context, g *dag.Git) (Commit, error) {
	key := fmt.Sprintf("%q %q %v %q", g.Remote, g.Ref, g.FetchByCommit, g.Checksum)
	found, err := c.commits.do(ctx, key, func() (Commit, error) { return c.resolve(ctx, g) })
	return found, failure(g.Remote, err)
}

func (c *Client) resolve(ctx context.Context, g *dag.Git) (Commit, error) {
	if _, err := c.transport(g.Remote); err != nil {
		return Commit{}, err
	}
	var found Commit
	switch {
	case dag.IsCommit(g.Ref):
		found.ID = g.Ref
	case g.FetchByCommit:
		found.ID, found.Ref = g.Checksum, g.Ref
		if g.Ref != "" && !strings.HasPrefix(g.Ref, "refs/") {
			found.Ref = "refs/heads/" + g.Ref
		}
	default:
		var err error
		if found, err = c.lookUp(ctx, g); err != nil {
			return found, err
		}
	}
	if !dag.IsCommit(found.ID) {
		return found, fmt.Errorf("the remote names no commit, but %q", found.ID)
	}
	return found, checkCommit(g.Checksum, found)
}

// checkCommit compares a commit, or its tag, with how it must begin.
func checkCommit(checksum string, found Commit) error {
	sum := strings.ToLower(checksum)
	if strings.HasPrefix(found.ID, sum) || found.Tag != "" && strings.HasPrefix(found.Tag, sum) {
		return nil
	}
	got := found.ID
	if found.Tag != "" {
		got = found.Tag + " or " + found.ID
	}
	return fmt.Errorf("expected checksum to match %s, got %s", checksum, got)
}

// lookUp asks the remote; offline it tells what the remote was when last asked.
func (c *Client) lookUp(ctx context.Context, g *dag.Git) (Commit, error) {
	r := c.repo(g.Remote, g.Remote)
	release, err := r.lock(ctx)
	if err != nil {
		return Commit{}, err
	}
	defer release()
	seen := r.seen()
	if c.o.Offline {
		if found, ok := seen[g.Ref]; ok {
			return found, nil
		}
		return Commit{}, errOffline
	}
	args := []string{"ls-remote", "--symref", "--", r.address(ctx)}
	if g.Ref == "" {
		args = append(args, "HEAD")
	} else if !abbreviated(g.Ref) {
		args = append(args, g.Ref, g.Ref+"^{}")
	}
	out, err := r.online(ctx, args...)
	if err != nil {
		return Commit{}, err
	}
	found, err := chooseRef(out, g.Ref)
	if err != nil || seen[g.Ref] == found {
		return found, err
	}
	seen[g.Ref] = found
	return found, r.see(seen)
}

// abbreviated reports whether a revision may be the beginning of a commit's name.
func abbreviated(ref string) bool {
	return len(ref) >= 7 && len(ref) < 64 && strings.Trim(ref, "0123456789abcdef") == ""
}

// chooseRef finds a revision in the output of ls-remote: as it is, then as a branch, then as a tag (git prefers branches). What is none of
// them may be the beginning of a commit that some branch or tag points to.
func chooseRef(out, ref string) (Commit, error) {
	refs, head := parseRefs(out)
	if ref == "" {
		if id := refs["HEAD"]; id != "" {
			return Commit{ID: id, Ref: head}, nil
		}
		return Commit{}, errors.New("the repository has no default branch")
	}
	for _, name := range []string{"refs/" + strings.TrimPrefix(ref, "refs/"), "refs/heads/" + strings.TrimPrefix(ref, "refs/heads/"),
		"refs/tags/" + strings.TrimPrefix(ref, "refs/tags/")} {
		id, ok := refs[name]
		if !ok {
			continue
		}
		found := Commit{ID: id, Ref: name}
		if peeled := refs[name+"^{}"]; peeled != "" {
			found.ID, found.Tag = peeled, id
		}
		return found, nil
	}
	if id := refs["HEAD"]; ref == "HEAD" && id != "" {
		return Commit{ID: id, Ref: head}, nil
	}
	return byPrefix(refs, ref)
}

func byPrefix(refs map[string]string, ref string) (Commit, error) {
	found := map[string]bool{}
	id := ""
	if abbreviated(ref) {
		for name, sum := range refs {
			if _, annotated := refs[name+"^{}"]; !annotated && strings.HasPrefix(sum, ref) {
				id, found[sum] = sum, true
			}
		}
	}
	switch len(found) {
	case 1:
		return Commit{ID: id}, nil
	case 0:
		hint := "the name of a branch, a tag or a whole commit is needed"
		return Commit{}, hintError{fmt.Errorf("repository does not contain ref %s", ref), hint}
	}
	return Commit{}, fmt.Errorf("ref %s is the beginning of several commits", ref)
}

// parseRefs reads ls-remote's lines: "<id>\t<ref>", and "ref: <branch>\tHEAD".
func parseRefs(out string) (refs map[string]string, head string) {
	refs = map[string]string{}
	for line := range strings.Lines(out) {
		id, name, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		target, symbolic := strings.CutPrefix(id, "ref: ")
		switch {
		case !ok:
		case symbolic && name == "HEAD" && strings.HasPrefix(target, "refs/heads/"):
			head = target
		case !symbolic && dag.IsCommit(id):
			refs[name] = id
		}
	}
	return refs, head
}

// transports are how git may talk. Others (ext, file) run programs or read this machine.
var transports = map[string]bool{"http": true, "https": true, "ssh": true, "git": true}

var scpForm = regexp.MustCompile(`^([a-zA-Z0-9_-]+)@([a-zA-Z0-9.-]+):(.*)$`)

// transport checks the address of a repository and returns its scheme.
func (c *Client) transport(remote string) (string, error) {
	for _, r := range remote {
		if r < ' ' || r == 0x7f {
			return "", errors.New("the address has control characters")
		}
	}
	if strings.HasPrefix(remote, "-") {
		return "", errors.New("the address begins with a dash")
	}
	if m := scpForm.FindStringSubmatch(remote); m != nil && !strings.Contains(remote, "://") {
		return "ssh", checkParts(m[1], m[2], m[3])
	}
	u, err := url.Parse(remote)
	if err != nil {
		return "", unwrapURL(err)
	}
	if !transports[u.Scheme] || u.Opaque != "" {
		return "", fmt.Errorf("git addresses are http, https, ssh, git or user@host:path, not %q", Redact(remote))
	}
	return u.Scheme, checkParts(u.User.Username(), u.Hostname(), u.Path)
}

// checkParts refuses what ssh or git could take for an option.
func checkParts(user, host, path string) error {
	if host == "" || strings.HasPrefix(user, "-") || strings.HasPrefix(host, "-") || strings.HasPrefix(path, "-") {
		return errors.New("invalid git address")
	}
	return nil
}
