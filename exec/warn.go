package exec

import (
	"fmt"
	"slices"

	"img/cache"
	"img/dag"
	"img/snapshot"
)

// Rules for what a step does as BuildKit does it, and what people might not expect. Whether they apply is known only when files are
// seen; docs/checks.md lists them beside those that the Dockerfile alone tells.
const (
	rulePatternNoMatch    = "CopyPatternWithoutMatch"
	ruleUnknownOwner      = "UnknownOwner"
	ruleOverwritesItself  = "CopyOverwritesItself"
	ruleLinkReplacesLink  = "LinkReplacesSymlink"
	ruleDirectoryMetadata = "CopyDirectoryMetadata"
	ruleSecretNotGiven    = "SecretNotGiven"
)

// warn notes a surprise, once.
func (t *target) warn(rule, format string, args ...any) {
	w := cache.Warning{Rule: rule, Text: fmt.Sprintf(format, args...)}
	if !slices.Contains(t.warnings, w) {
		t.warnings = append(t.warnings, w)
	}
}

// place notes which single file goes to a path; of several the last stays. Directories that are laid over each other are not looked
// into: that is mostly meant, and would need a list of all files.
func (c *copier) place(dst, what string) {
	if c.placed == nil {
		c.placed = map[string]string{}
	}
	if before, ok := c.placed[dst]; ok && before != what {
		c.t.warn(ruleOverwritesItself, "%q and %q are both copied to \"/%s\": only the last one stays", before, what, dst)
	}
	c.placed[dst] = what
}

// destination compares a directory that the step made with the one whose contents it gets. Its own mode and owner do not come along,
// which matters where they keep others out, or name somebody but root.
func (c *copier) destination(dst string, e snapshot.Entry) {
	if !c.made {
		return
	}
	c.made = false
	mode := c.t.mode.parents()
	if opened := mode &^ e.Mode & 0o077; c.op.Chmod == "" && (opened != 0 || e.Mode&0o7000 != 0) {
		c.t.warn(ruleDirectoryMetadata, "\"/%s\" is made with mode %#o, not with the source directory's %#o; --chmod sets one", dst, mode, e.Mode)
	}
	if !c.t.chown && (e.UID != 0 || e.GID != 0) {
		c.t.warn(ruleDirectoryMetadata, "\"/%s\" is made with the owner 0:0, not with the source directory's %d:%d; --chown sets one", dst, e.UID, e.GID)
	}
}

// notGiven warns of secrets that a step goes without.
func (a runArgs) notGiven() (out []cache.Warning) {
	for i, m := range a.Op.Mounts {
		if m.Type == dag.MountSecret && !m.Required && !a.Mounts[i].Given {
			out = append(out, cache.Warning{Rule: ruleSecretNotGiven,
				Text: fmt.Sprintf("The secret %q is not given, and the step runs without it; required=true makes that an error", m.ID)})
		}
	}
	return out
}
