package dockerfile

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// rows are the rows, rules and traps of the specification (reference/dockerfile-language.md §1). A case shows a row by beginning its
// first line with the section and having the row's words in it.
var rows = map[string][]string{
	"§1.2": {"Flags: directly", "Flags: a repeated", "Flags: booleans", "ARG and STOPSIGNAL never parse", "FROM expands", "RUN expands mount options", "COPY expands sources",
		"ADD expands", "expand; keys too", "ARG expands the default alone", "HEALTHCHECK options do not", "MAINTAINER and ONBUILD do not", "ONBUILD is stored raw",
		"COPY --from tells", "--exclude keeps", "as it was before it", "RUN, CMD, ENTRYPOINT, SHELL", "ADD has no --from"},
	"§1.3": {"Directives: a comment", "Directives: an empty line", "Directives: an unknown", "Directives: keys in any case", "Directives: each once", "escape: the backtick", "syntax detection: after a #!",
		"syntax detection: // syntax", "syntax detection: a JSON", "syntax detection: BUILDKIT_SYNTAX", "syntax detection: dockerfile.v0", "check: skip=all", "check: BUILDKIT_DOCKERFILE_CHECK",
		"check: a comment directly above", "check: experimental", "Comments: none behind", "Comments are dropped between", "Leading whitespace", "Continuation: blanks", "Continuation: an empty line",
		"Continuation: an escape at the end", "Limits: a physical line", "Limits: a file without instructions", "BOM", "JSON form: an array with something else", "JSON form: what is no JSON",
		"JSON form in COPY, ADD", "Case: keywords", "Unknown instruction", "ENV legacy", "Quoting: double", "Quoting: single", "Quoting: an escaped blank",
		"Heredocs: a COPY/ADD source", "Heredocs: RUN <<EOF alone", "Heredocs: a body starting #!", "Heredocs: several are put together", "Heredocs: expansion in RUN", "Heredocs: 3<<WORD",
		"Heredocs: <<- strips", "Heredocs: a quoted word", "Heredocs: several in a line", "Heredocs: never in JSON", "Heredocs: only for", "Heredocs: the destination", "Heredocs: in bodies quotes",
		"Heredocs: ONBUILD", "Heredocs: unterminated"},
	"§1.4": {"$x, ${x}:", "${x:-w}, ${x-w}:", "${x:+w}, ${x+w}:", "${x:?w}: an empty", "${x?w}: an unset", "${x#p}, ${x##p}:", "${x%p}, ${x%%p}:", "${x/p/r}, ${x//p/r}:",
		"nest expansions", "Patterns know only", "${x:#p} is rejected", "${x:%p} is rejected", "Replacement text is a Go", "Special parameters parse", "${}: bad substitution"},
	"§1.5": {"Global ARGs are not visible", "Global ARGs see", "Stage ARG: from its line", "Stage ARG value:", "In RUN: the arguments", "ENV vs ARG [clash]", "ENV vs ARG: at the start", "Stage ARG: one without",
		"Undeclared --build-arg", "Proxy ARGs: all five", "Platform ARGs: all eleven", "Platform ARGs must be", "TARGETOSVERSION", "Behaviour ARGs", "BUILDKIT_SBOM_SCAN_", "BUILDKIT_CACHE_MOUNT_NS",
		"BUILDKIT_SANDBOX_HOSTNAME", "SOURCE_DATE_EPOCH value: integer", "SOURCE_DATE_EPOCH value: empty", "SOURCE_DATE_EPOCH: a local context", "SOURCE_DATE_EPOCH: a named context",
		"SOURCE_DATE_EPOCH: exactly one", "SOURCE_DATE_EPOCH: the stage must", "SOURCE_DATE_EPOCH: anything else", "PATH is added"},
	"§1.6": {"Stage name: lower-cased", "Stage name: must match", "Duplicates: the last", "reserved", "Name resolution order", "A named context that stands for a stage", "--mount from=0 also by number",
		"FROM by name only", "FROM compares its text as written [trap]", "Later stage:", "Self and circular", "Only reachable stages", "unknown --target", "default = last stage", "--platform: constant or", "--platform mismatch",
		"scratch: empty", "Base config: inherited whole", "zero layers", "ONBUILD triggers", "ONBUILD: cleared afterwards", "new --from dependencies"},
	"§1.7":  {"Root:", "Destination:", "COPY of URL", "--chmod", "several sources", "[trap] --link", "--checksum", "--parents", "--exclude", "--unpack", "--from"},
	"§1.8":  {"Shell form", "Exec form", "bind", "cache", "tmpfs", "secret", "ssh", "Rules: a relative", "Rules: target /", "Rules: unknown key", "Rules: key not valid", "from", "--network", "--security", "--device", "hostname"},
	"§1.9":  {"CMD", "ENTRYPOINT resets", "ENTRYPOINT []", "HEALTHCHECK: all", "HEALTHCHECK: NONE", "HEALTHCHECK: durations", "SHELL", "WORKDIR always", "WORKDIR: a trailing", "USER", "VOLUME", "EXPOSE: protocols", "STOPSIGNAL", "LABEL", "ENV replaces", "MAINTAINER", "ONBUILD: raw"},
	"§1.10": {"RUN |N", "COPY/ADD:", "ARG k=v", "USER/STOPSIGNAL", "empty layers", "Base history", "typical"},
	"§1.11": {"Syntax:", "lone !", "last match", "directory"},
	"§1.12": {"StageNameCasing", "SecretsUsedInArgOrEnv", "UndefinedVar", "UndefinedArgInFrom", "InvalidDefaultArgInFrom", "RedundantTargetPlatform", "FromPlatformFlagConstDisallowed", "MultipleInstructionsDisallowed", "error=true"},
	"§1.13": {"--target 0", "text after a JSON array"},
}

// Each row is named in a case.
func TestRows(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(cases, "*.txtar"))
	if err != nil || len(files) < 300 {
		t.Fatalf("%d cases, %v", len(files), err)
	}
	var first []string
	for _, name := range files {
		raw, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		line, _, _ := bytes.Cut(raw, []byte("\n"))
		first = append(first, string(line))
	}
	for section, names := range rows {
		for _, row := range names {
			if !shown(first, section, row) {
				t.Errorf("no case shows %s %s", section, row)
			}
		}
	}
}

func shown(lines []string, section, row string) bool {
	for _, line := range lines {
		if strings.HasPrefix(line, section+" ") && strings.Contains(line, row) {
			return true
		}
	}
	return false
}
