package dockerfile

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"img/dag"
)

// String prints a plan for people: a line a vertex, then the configuration and the history. With several platforms, those two stand under
// a line for each.
//
//	0 image linux/amd64 FROM alpine [0 1/2 Dockerfile:1] ref=alpine chain=sha256:…
//	1 run linux/amd64 RUN make [0 2/2 Dockerfile:2] <-0 args=["/bin/sh" "-c" "make"] …
func (p *Plan) String() string {
	var w strings.Builder
	if p.Graph != nil {
		for _, v := range p.Graph.Vertices {
			writeVertex(&w, v)
		}
	}
	for _, t := range p.Targets {
		if len(p.Targets) > 1 || p.Index != dag.Empty {
			fmt.Fprintf(&w, "target %s\n", t.Platform)
		}
		fmt.Fprintf(&w, "files %s\n", vertexName(t.Files))
		if t.Manifest != dag.Empty {
			fmt.Fprintf(&w, "image %s\n", vertexName(t.Manifest))
		}
		writeConfig(&w, t.Config)
	}
	if p.Index != dag.Empty {
		fmt.Fprintf(&w, "index %s\n", vertexName(p.Index))
	}
	for _, x := range p.Warnings {
		fmt.Fprintf(&w, "warning %s: %s: %s\n", x.Pos, x.Rule, x.Text)
	}
	return w.String()
}

func vertexName(id dag.ID) string {
	if id == dag.Empty {
		return scratch
	}
	return fmt.Sprint(int(id))
}

func writeVertex(w *strings.Builder, v *dag.Vertex) {
	fmt.Fprintf(w, "%d %s %s %s [%s", v.ID, v.Op.Kind(), v.Platform, quoteControl(v.Name), v.Stage)
	if v.Steps > 0 {
		fmt.Fprintf(w, " %d/%d", v.Step, v.Steps)
	}
	if !v.Pos.IsZero() {
		fmt.Fprintf(w, " %s", v.Pos)
	}
	w.WriteString("]")
	for i, id := range v.Inputs {
		fmt.Fprintf(w, "%s%d", map[bool]string{true: " <-", false: ","}[i == 0], id)
	}
	if v.NoCache {
		w.WriteString(" no-cache")
	}
	for _, f := range details(v.Op) {
		w.WriteString(" " + f)
	}
	w.WriteString("\n")
}

// quoteControl keeps a vertex on its line, and a terminal from obeying a Dockerfile.
func quoteControl(s string) string {
	var w strings.Builder
	for _, r := range s {
		if unicode.IsPrint(r) {
			w.WriteRune(r)
			continue
		}
		w.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
	}
	return w.String()
}

// details are an op's fields as "name=value", those with their zero value left out. Refs that say nothing new are left out too.
func details(op dag.Op) []string {
	switch op := op.(type) {
	case *dag.Image:
		return fields("ref", op.Ref, "chain", op.ChainID, "source", op.Source)
	case *dag.Run:
		f := fields("args", op.Args, "env", op.Env, "proxy", op.ProxyEnv, "dir", op.Dir, "user", op.User, "hostname", op.Hostname,
			"network", op.Network, "security", op.Security, "script", string(op.Script), "at", op.ScriptPath)
		for _, m := range op.Mounts {
			f = append(f, "mount=("+strings.Join(mountDetails(m), " ")+")")
		}
		for _, d := range op.Devices {
			f = append(f, "device=("+strings.Join(fields("name", d.Name, "required", d.Required), " ")+")")
		}
		for _, h := range op.Hosts {
			f = append(f, fmt.Sprintf("host=%s:%s", h.Name, h.IP))
		}
		return f
	case *dag.Copy:
		var f []string
		for _, s := range op.Sources {
			d := copySourceDetails(s)
			if len(op.Sources) > 1 {
				d = []string{"source=(" + strings.Join(d, " ") + ")"}
			}
			f = append(f, d...)
		}
		f = append(f, fields("dest", op.Dest, "chown", op.Chown, "chmod", op.Chmod, "exclude", op.Exclude, "parents", op.Parents)...)
		for _, h := range op.Files {
			f = append(f, fmt.Sprintf("file=%s:%q", h.Name, h.Data))
		}
		return f
	case *dag.HTTP:
		return fields("url", op.URL, "name", op.Name, "checksum", op.Checksum)
	case *dag.Git:
		return fields("remote", op.Remote, "ref", op.Ref, "subdir", op.Subdir, "checksum", op.Checksum, "keep-git-dir", op.KeepGitDir,
			"skip-submodules", op.SkipSubmodules, "mtime", op.MTime, "fetch-by-commit", op.FetchByCommit)
	case *dag.Mkdir:
		return fields("path", op.Path, "user", op.User)
	case *dag.Merge:
		return fields("changes", fmt.Sprintf("input:%d", op.Changes))
	case *dag.Pack:
		f := fields("compression", op.Compression, "docker", op.Docker, "epoch", op.Epoch)
		if op.Squash {
			f = append(f, "squash-above="+cmp.Or(sourceName(dag.Source{Input: op.Above}), scratch))
			for _, r := range op.FromContexts {
				f = append(f, fmt.Sprintf("context-step=input:%d", r))
			}
		}
		return f
	case *dag.Manifest:
		f := fields("base-layers", len(op.BaseLayers), "packs", len(op.Packs), "docker", op.Docker, "epoch", op.Epoch, "omit-history", op.OmitHistory)
		f = append(f, annotations("annotation", op.Annotations)...)
		return append(f, annotations("descriptor", op.Descriptor)...)
	case *dag.Index:
		f := fields("docker", op.Docker)
		for _, m := range op.Images {
			f = append(f, fmt.Sprintf("input:%d=%s", m.Manifest, m.Platform))
		}
		f = append(f, annotations("annotation", op.Annotations)...)
		return append(f, annotations("descriptor", op.Descriptor)...)
	}
	return nil
}

func copySourceDetails(s dag.CopySource) []string {
	return fields("from", sourceName(s.From), "paths", s.Paths, "literal", s.Literal, "unpack", s.Unpack, "times", s.Times)
}

func annotations(name string, m map[string]string) (out []string) {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, name+"="+quoted(k+"="+m[k]))
	}
	return out
}

func mountDetails(m dag.Mount) []string {
	return fields("type", m.Type, "target", m.Target, "from", sourceName(m.From), "source", m.Source, "ro", m.ReadOnly, "id", m.ID,
		"sharing", m.Sharing, "size", m.Size, "required", m.Required, "env", m.Env, "mode", m.Mode, "uid", m.UID, "gid", m.GID)
}

// sourceName is a context's name, or "<-N" for the N-th input.
func sourceName(s dag.Source) string {
	switch {
	case s.Context != "":
		return s.Context
	case s.Input == dag.Scratch:
		return ""
	}
	return fmt.Sprintf("input:%d", s.Input)
}

// fields formats pairs of name and value.
func fields(pairs ...any) (out []string) {
	for i := 0; i < len(pairs); i += 2 {
		v := reflect.ValueOf(pairs[i+1])
		if v.IsZero() || v.Kind() == reflect.Slice && v.Len() == 0 {
			continue
		}
		if v.Kind() == reflect.Pointer {
			v = v.Elem()
		}
		if v.Kind() == reflect.Bool {
			out = append(out, fmt.Sprint(pairs[i]))
			continue
		}
		out = append(out, fmt.Sprintf("%s=%s", pairs[i], quoted(v.Interface())))
	}
	return out
}

func quoted(v any) string {
	switch v := v.(type) {
	case string:
		if v == "" || strings.ContainsAny(v, " \"()=\n\t") {
			return fmt.Sprintf("%q", v)
		}
		return v
	case []string:
		return fmt.Sprintf("%q", v)
	}
	return fmt.Sprint(v)
}

// writeConfig prints a configuration: a line a field, and a line for each entry of the history, with "+" where it has a layer.
func writeConfig(w *strings.Builder, raw []byte) {
	var c struct {
		imageMeta
		Config  map[string]json.RawMessage
		History []historyEntry
	}
	if len(raw) == 0 || json.Unmarshal(raw, &c) != nil {
		return
	}
	meta, _ := json.Marshal(c.imageMeta)
	fmt.Fprintf(w, "platform %s\n", meta)
	for _, f := range configFields {
		if v, ok := c.Config[f]; ok {
			fmt.Fprintf(w, "config %s %s\n", f, v)
		}
	}
	for _, h := range c.History {
		mark := "+"
		if h.EmptyLayer {
			mark = " "
		}
		fmt.Fprintf(w, "history %s %s", mark, quoteControl(h.CreatedBy))
		if h.Comment != historyComment && h.Comment != "" {
			fmt.Fprintf(w, " (%s)", h.Comment)
		}
		w.WriteString("\n")
	}
}

var configFields = []string{"User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "Labels", "StopSignal", "ArgsEscaped",
	"Healthcheck", "OnBuild", "Shell"}
