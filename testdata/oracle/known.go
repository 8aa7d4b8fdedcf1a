package main

import (
	"fmt"
	"os"
	"regexp"
	"strings"
)

// A knownDifference is one that we mean.
type knownDifference struct {
	name, reason string
	// doc is how docs/dockerfile.md begins to tell users of it.
	doc string
	// source must match the case as it is printed, lines every line that differs: one of ours begins "img: ", else "buildkit: ".
	source, lines *regexp.Regexp
}

var anything = regexp.MustCompile(``)

var known = []knownDifference{{
	name:   "other front ends",
	reason: "BuildKit's front end takes the image before its lowering sees the file, we have the one language",
	doc:    "other front ends are refused by name",
	source: regexp.MustCompile(`(?i)syntax`),
	lines:  regexp.MustCompile(`^img: error .*the front end "\S+" is not supported`),
}, {
	name:   "names of heredocs",
	reason: "BuildKit fails when it makes the file, or writes where nobody meant to",
	doc:    "a name that is no file name is an error at once",
	source: regexp.MustCompile(`<<`),
	lines:  regexp.MustCompile(`^img: error .*the heredoc name ".*" is no file name$`),
}, {
	name:   "limits of expansion",
	reason: "a file of a few lines must not take all memory",
	doc:    "1 MiB an expanded word",
	source: anything,
	lines:  regexp.MustCompile(`^img: error .*: a word expands to \d+ bytes, more than`),
}, {
	name:   "from= of a mount by number",
	reason: "BuildKit's documentation says that it is a stage, as with COPY; its code takes it for an image's name",
	doc:    "a number in `from=` is an image's name in BuildKit's code",
	source: regexp.MustCompile(`--mount=\S*from=\d`),
	lines:  regexp.MustCompile(`^buildkit: base \d+ |^buildkit: run .*bind \S+ from=\d+ |^img: run .*bind \S+ from=stage `),
}, {
	name:   "env= of a secret without a name",
	reason: "a variable without a name is of use to nobody",
	doc:    "`env=` without a name means the secret's id",
	source: regexp.MustCompile(`--mount=\S*env=(?m:[,\s]|$)`),
	lines:  regexp.MustCompile(`^buildkit: run .*secretenv =\S+ |^img: run .*secretenv \w+=\S+ `),
}, {
	name:   "files of Windows images",
	reason: "their layers have another form, which we do not write",
	doc:    "COPY and ADD onto a Windows base, RUN and WORKDIR on one, are errors",
	source: regexp.MustCompile(`(?m)^-- platform: "windows`),
	lines:  regexp.MustCompile(`^img: error .*the files of a Windows image cannot be changed on Linux`),
}, {
	name:   "the working directory of a Windows image",
	reason: "Windows takes both; nothing that runs here reads it",
	doc:    "an empty Windows image begins in `/`",
	source: regexp.MustCompile(`(?m)^-- platform: "windows`),
	lines:  regexp.MustCompile(`^buildkit: config WorkingDir "\\\\"$|^img: config WorkingDir "/"$`),
}, {
	name:   "owners by name where nobody has a name",
	reason: "BuildKit fails with the same words when it copies; that there is no passwd is known before",
	doc:    "names from the root that is written to, so on `scratch` and with `--link` they are an error",
	source: regexp.MustCompile(`--chown=`),
	lines:  regexp.MustCompile(`^img: error .*: invalid user index: there is no /etc/passwd to find`),
}, {
	name:   "revisions and checksums of git",
	reason: "BuildKit's git source refuses the same, after its lowering",
	doc:    "what cannot be a ref or a checksum is an error before anything is fetched",
	source: regexp.MustCompile(`(?i)ADD `),
	lines:  regexp.MustCompile(`^img: error .*: invalid git ref "-|^img: error .*: invalid checksum \S+ for Git URL, expected hex commit hash`),
}, {
	name:   "URLs whose last part is no file name",
	reason: "a name with control characters, or that leads elsewhere, must not come from an address",
	doc:    "a URL whose last part is `..` or has control characters becomes the file `download`",
	source: regexp.MustCompile(`(?i)ADD `),
	lines:  regexp.MustCompile(`^(buildkit|img): copy from=https?://\S*(%2e%2e|%[01][0-9A-Fa-f])\S* `),
}}

// explain returns the name of the row that explains a line of a difference, "" for none.
func explain(c testcase, line string) string {
	for _, k := range known {
		if k.lines.MatchString(line) && k.source.MatchString(c.String()) {
			return k.name
		}
	}
	return ""
}

// documented looks for each row of the table in the page that users read.
func documented(page string) error {
	raw, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	text := strings.Join(strings.Fields(string(raw)), " ")
	for _, k := range known {
		if !strings.Contains(text, k.doc) {
			return fmt.Errorf("known.go: %s: %s does not say %q", k.name, page, k.doc)
		}
	}
	return nil
}
