package dockerfile

// Errors about options of instructions, and the keys of their values.

import (
	"slices"
	"strings"
)

func (c *complaint) atFlag(name string) bool {
	s, ok := c.t.flag(name)
	if ok {
		c.at(s)
	}
	return ok
}

func (c *complaint) atFlagValue(name string) {
	if s, ok := c.t.flag(name); ok {
		c.at(c.t.value(s))
	}
}

// atField places the complaint at a field of a RUN --mount; an empty value stands for any.
func (c *complaint) atField(key, value string) bool {
	for _, fields := range c.t.mounts() {
		for _, f := range fields {
			if f.key == key && (value == "" || f.value == value) {
				c.at(f.span)
				return true
			}
		}
	}
	for _, fields := range c.t.mounts() { // the value may be what a variable stands for
		for _, f := range fields {
			if f.key == key && strings.Contains(f.value, "$") {
				c.at(f.span)
				return true
			}
		}
	}
	return false
}

// oneOf hints at what a word may be.
func (c *complaint) oneOf(word string, known ...string) {
	if near := nearest(word, known); near != "" {
		c.hint("did you mean %q?", near)
	}
	c.hint("it is %s or %s", strings.Join(known[:len(known)-1], ", "), known[len(known)-1])
}

// flagNames are the options of each instruction that has some.
var flagNames = map[string][]string{
	"ADD":         {"--checksum", "--chmod", "--chown", "--exclude", "--keep-git-dir", "--link", "--unpack"},
	"COPY":        {"--chmod", "--chown", "--exclude", "--from", "--link", "--parents"},
	"FROM":        {"--platform"},
	"HEALTHCHECK": {"--interval", "--retries", "--start-interval", "--start-period", "--timeout"},
	"RUN":         {"--device", "--mount", "--network", "--security"},
}

func (c *complaint) unknownFlag(m []string) {
	c.e.Hint = ""
	c.atFlag(m[1])
	keyword := c.t.keyword()
	own := flagNames[keyword]
	if near := nearest(m[1], own); near != "" {
		c.hint("did you mean %q?", near)
		return
	}
	for _, other := range []string{"COPY", "ADD", "RUN", "FROM", "HEALTHCHECK"} {
		if slices.Contains(flagNames[other], m[1]) {
			c.hint("%s has it, %s does not", other, keyword)
			return
		}
	}
	if len(own) == 0 {
		c.hint("%s takes no options", keyword)
		return
	}
	c.hint("%s has %s", keyword, strings.Join(own, " "))
}

func (c *complaint) duplicateFlag(m []string) {
	c.atFlag(m[1])
	c.hint("of the options, only --mount, --device and --exclude may be repeated")
}

func (c *complaint) flagWithoutValue(m []string) {
	c.atFlag(m[1])
	flags, args := c.t.arguments()
	s, _ := c.t.flag(m[1])
	if len(flags) > 0 && flags[len(flags)-1] == s && len(args) > 0 && !strings.HasSuffix(c.t.of(s), "=") {
		c.hint("an option and its value are one word: %s=%s", m[1], c.t.of(args[0]))
		return
	}
	if slices.Contains([]string{"--link", "--parents", "--keep-git-dir", "--unpack"}, m[1]) {
		c.hint("it is true or false, or just %s", m[1])
	}
	c.hint("as %s=VALUE", m[1])
}

func (c *complaint) flagNotBool(m []string) {
	c.atFlagValue(m[1])
	c.hint("it is true or false")
}

// keyOfOtherType is a key that this type of mount does not have; BuildKit reads the fields from left to right, so the type has to come first.
func (c *complaint) keyOfOtherType(m []string) {
	of := map[string]string{"required": "secret and ssh mounts have required", "size": "tmpfs mounts have size"}[m[1]]
	for _, fields := range c.t.mounts() {
		seen, at := "bind", -1
		for i, f := range fields {
			if f.key == m[1] && at < 0 && seen == m[2] {
				at = i
			}
			if f.key == "type" {
				seen = strings.ToLower(f.value)
			}
		}
		if at < 0 {
			continue
		}
		c.at(fields[at].span)
		if seen != m[2] {
			c.hint("write type=%s before it", seen)
		}
		break
	}
	c.hint("%s", of)
}

// mountKeys are the keys of RUN --mount in full.
var mountKeys = strings.Fields("type from source target readonly readwrite id sharing required size mode uid gid env src dst destination ro rw")

func (c *complaint) unknownKey(m []string) {
	c.e.Hint = ""
	c.atField(m[1], "")
	if near := nearest(m[1], mountKeys); near != "" {
		c.hint("did you mean %q?", near)
		return
	}
	c.hint("the keys are %s", strings.Join(mountKeys, " "))
}

func (c *complaint) keyWithoutValue(m []string) {
	c.atField(strings.ToLower(m[1]), "")
	if near := nearest(m[1], []string{"ro", "readonly", "rw", "readwrite", "required"}); near != "" {
		c.hint("did you mean %q?", near)
		return
	}
	if slices.Contains(mountKeys, strings.ToLower(m[1])) {
		c.hint("as %s=VALUE", m[1])
	}
	c.hint("the fields are apart by commas, and those of one --mount are one word")
}
