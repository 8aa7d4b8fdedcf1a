package main

import (
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/platforms"
)

// An outcome is what one side makes of a Dockerfile: an error, or lines that both sides write alike.
type outcome struct {
	err   error
	lines []string
}

func (o *outcome) add(format string, args ...any) {
	o.lines = append(o.lines, fmt.Sprintf(format, args...))
}

func (o *outcome) warning(line int, rule, text string) {
	text, _, _ = strings.Cut(text, " (did you mean") // a remedy stands elsewhere with img
	o.add("warning %d %s: %s", line, rule, text)
}

// difference returns the lines that one side alone has, "buildkit: …" or "img: …". An error ends all comparison.
func difference(theirs, ours outcome) (out []string) {
	switch {
	case theirs.err == nil && ours.err == nil:
		return append(missing("buildkit", theirs.lines, ours.lines), missing("img", ours.lines, theirs.lines)...)
	case ours.err == nil:
		return []string{"buildkit: error " + theirs.err.Error()}
	case theirs.err == nil:
		return []string{"img: error " + ours.err.Error()}
	case strings.HasPrefix(ours.err.Error(), errPanic.Error()):
		return []string{"img: " + ours.err.Error()}
	}
	return nil
}

func missing(side string, from, in []string) (out []string) {
	for _, line := range slices.Compact(slices.Sorted(slices.Values(from))) {
		if !slices.Contains(in, line) {
			out = append(out, side+": "+line)
		}
	}
	return out
}

// image adds the lines of an image's configuration. Times and layers are not lowering's alone.
func (o *outcome) image(raw []byte) error {
	var doc map[string]any
	if err := json.Unmarshal(raw, &doc); err != nil {
		return err
	}
	history, _ := doc["history"].([]any)
	for i, entry := range history {
		h, _ := entry.(map[string]any)
		o.add("history %02d %v comment=%v empty=%v", i, h["created_by"], h["comment"], h["empty_layer"])
	}
	config, _ := doc["config"].(map[string]any)
	for key, value := range config {
		if text, err := json.Marshal(value); err != nil {
			return err
		} else if !slices.Contains([]string{`null`, `""`, `{}`, `[]`}, string(text)) {
			o.add("config %s %s", key, text)
		}
	}
	for _, key := range []string{"history", "config", "rootfs", "created"} {
		delete(doc, key)
	}
	for key, value := range doc {
		o.add("image %s %v", key, value)
	}
	return nil
}

func (o *outcome) base(ref string, p platforms.Platform) {
	o.add("base %s %s", shortRef(ref), platforms.FormatAll(platforms.Normalize(p)))
}

// A run is a RUN's line; each of its mounts is text.
type run struct {
	args, env                         []string
	dir, user, host, network, sandbox string
	mounts                            []string
}

func (o *outcome) run(r run) {
	slices.Sort(r.mounts)
	o.add("run %q env=%q dir=%s user=%s host=%s network=%s security=%s mounts=[%s]", r.args, r.env, r.dir, r.user, r.host,
		strings.ToLower(r.network), strings.ToLower(r.sandbox), strings.Join(r.mounts, "; "))
}

// A mount at target, the same for each side; detail is what its kind has.
func mount(kind, target, format string, detail ...any) string {
	return strings.ToLower(kind) + " " + path.Clean(target) + " " + fmt.Sprintf(format, detail...)
}

func bindDetail(from, source string, readOnly bool) string {
	return fmt.Sprintf("from=%s source=%s ro=%v", from, rooted(source), readOnly)
}

func cacheDetail(id, sharing string, readOnly bool) string {
	return fmt.Sprintf("id=%s sharing=%s ro=%v", id, strings.ToLower(sharing), readOnly)
}

func secretDetail(id string, uid, gid, mode uint32, optional bool) string {
	return fmt.Sprintf("id=%s uid=%d gid=%d mode=%o optional=%v", id, uid, gid, mode, optional)
}

func secretEnv(name, id string, optional bool) string {
	return fmt.Sprintf("secretenv %s=%s optional=%v", name, id, optional)
}

func device(name string, optional bool) string {
	return fmt.Sprintf("device %s optional=%v", name, optional)
}

// A copied is one source of a COPY or ADD.
type copied struct {
	from, source, dest, owner, mode string
	unpack                          bool
	exclude                         []string
}

func (o *outcome) copied(c copied) {
	o.add("copy from=%s source=%q dest=%s owner=%s mode=%s unpack=%v exclude=%q", c.from, rooted(c.source), c.dest, c.owner,
		octal(c.mode), c.unpack, c.exclude)
}

// heredoc is a source whose body stands in the Dockerfile.
func (o *outcome) heredoc(name string, body []byte) {
	o.add("heredoc %s %q", rooted(name), body)
}

func (o *outcome) directory(name, owner string) {
	o.add("directory %s owner=%s", name, owner)
}

func rooted(p string) string {
	return path.Clean("/" + p)
}

// octal gives a mode in digits without leading zeros; a symbolic one stays.
func octal(mode string) string {
	if n, err := strconv.ParseUint(mode, 8, 32); err == nil {
		return strconv.FormatUint(n, 8)
	}
	return mode
}

// shortRef is what people write for a reference.
func shortRef(ref string) string {
	for _, prefix := range []string{"docker-image://", "docker.io/", "library/"} {
		ref = strings.TrimPrefix(ref, prefix)
	}
	return strings.TrimSuffix(ref, ":latest")
}
