package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/platforms"
	"github.com/rogpeppe/go-internal/txtar"
)

// buildPlatform is the machine's in every case, whatever it is.
const buildPlatform = "linux/amd64"

// A testcase is a Dockerfile, what it is built with, and the registry that it sees.
type testcase struct {
	name, source               string
	args, labels               map[string]string
	target, platform, hostname string
	// bases are configurations by reference, nil for those of defaultConfig; unknown are references that nobody has.
	bases   map[string]json.RawMessage
	unknown []string
	// parts of a generated file, which source joins, and the triggers of its image "node:onbuild".
	parts, triggers []string
}

// String is the case as a reader repeats it.
func (c testcase) String() string {
	text := strings.TrimSpace(c.source)
	for _, x := range []struct {
		name  string
		value any
		given bool
	}{
		{"build arguments", c.args, c.args != nil}, {"labels", c.labels, c.labels != nil}, {"target", c.target, c.target != ""},
		{"platform", c.platform, c.platform != buildPlatform}, {"triggers of node:onbuild", c.triggers, c.triggers != nil},
	} {
		if x.given {
			text += fmt.Sprintf("\n-- %s: %q", x.name, x.value)
		}
	}
	return text + "\n--"
}

// drop leaves out the part that line is in, and returns whether there was one.
func (c *testcase) drop(line int) bool {
	for i, part := range c.parts {
		if line -= strings.Count(part, "\n"); line <= 0 {
			c.parts = slices.Delete(slices.Clone(c.parts), i, i+1)
			c.source = strings.Join(c.parts, "")
			return true
		}
	}
	return false
}

// config is the configuration of a base. BuildKit asks for full references, img for those of the Dockerfile.
func (c testcase) config(ref, platform string) ([]byte, error) {
	ref = shortRef(ref)
	if slices.ContainsFunc(c.unknown, func(s string) bool { return shortRef(s) == ref }) {
		return nil, errors.New("not found")
	}
	if c.bases == nil {
		return c.defaultConfig(ref, platform)
	}
	for name, raw := range c.bases {
		if shortRef(name) == ref {
			return raw, nil
		}
	}
	return nil, errors.New("not found")
}

// defaultConfig is a small image; one with "onbuild" in its name has triggers, one with "full" about every field.
func (c testcase) defaultConfig(ref, platform string) ([]byte, error) {
	p, err := platforms.Parse(platform)
	if err != nil {
		return nil, err
	}
	p = platforms.Normalize(p)
	config := map[string]any{"Env": []string{"PATH=/bin"}}
	doc := map[string]any{
		"os": p.OS, "architecture": p.Architecture, "config": config,
		"history": []any{map[string]any{"created": "2026-01-02T03:04:05Z", "created_by": "base " + ref}},
		"rootfs":  map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(ref+platform)))}},
	}
	if p.Variant != "" {
		doc["variant"] = p.Variant
	}
	if strings.Contains(ref, "onbuild") {
		fillOnBuild(config)
		config["OnBuild"] = c.triggers
	}
	if strings.Contains(ref, "full") {
		fillFull(config)
		doc["author"] = "someone"
	}
	return json.Marshal(doc)
}

func fillOnBuild(config map[string]any) {
	config["Env"] = []string{"PATH=/usr/bin", "NODE_VERSION=20.1"}
	config["WorkingDir"] = "/srv"
	config["User"] = "node"
	config["Cmd"] = []string{"node"}
	config["Entrypoint"] = []string{"docker-entrypoint.sh"}
	config["Labels"] = map[string]string{"a": "b"}
}

func fillFull(config map[string]any) {
	config["Env"] = []string{"FOO=base", "BAR=with space", "EMPTY="}
	config["WorkingDir"] = "work/dir"
	config["User"] = "1000:1000"
	config["Cmd"] = []string{"a", "b"}
	config["Shell"] = []string{"/bin/bash", "-ec"}
	config["ExposedPorts"] = map[string]any{"80/tcp": map[string]any{}}
	config["Volumes"] = map[string]any{"/data": map[string]any{}}
	config["StopSignal"] = "SIGTERM"
	config["Healthcheck"] = map[string]any{"Test": []string{"CMD", "x"}, "Interval": 1000000000}
}

// goldenOptions are those options of a golden case that BuildKit's lowering has, too. Those of the second group change
// nothing that is compared here.
type goldenOptions struct {
	BuildArgs, Labels                       map[string]string
	Target, Platform, Hostname              string
	Platforms                               []string
	Epoch, RewriteTimes, Docker, Image      any
	Annotations, Compression, BuildPlatform any
}

// goldenCases reads the cases whose form dag/dockerfile's tests tell, one for each platform, and counts those that it leaves out.
func goldenCases(dir string) (out []testcase, left int, err error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.txtar"))
	if err != nil || len(names) == 0 {
		return nil, 0, fmt.Errorf("no cases in %s, %v", dir, err)
	}
	for _, name := range names {
		a, err := txtar.ParseFile(name)
		if err != nil {
			return nil, 0, err
		}
		found, err := goldenCase(strings.TrimSuffix(filepath.Base(name), ".txtar"), a)
		if err != nil {
			return nil, 0, fmt.Errorf("%s: %w", name, err)
		}
		if found == nil {
			left++
		}
		out = append(out, found...)
	}
	return out, left, nil
}

func goldenCase(name string, a *txtar.Archive) ([]testcase, error) {
	c := testcase{name: name}
	o := goldenOptions{Platform: buildPlatform}
	for _, f := range a.Files {
		switch f.Name {
		case "Dockerfile":
			c.source = string(f.Data)
		case "base.json":
			if err := json.Unmarshal(f.Data, &c.bases); err != nil {
				return nil, err
			}
		case "unknown":
			c.unknown = strings.Fields(string(f.Data))
		case "options":
			d := json.NewDecoder(bytes.NewReader(f.Data))
			d.DisallowUnknownFields()
			if d.Decode(&o) != nil || o.BuildPlatform != nil && o.BuildPlatform != buildPlatform {
				return nil, nil // an option that lowering does not have there
			}
		case "ignore", "times", ".dockerignore":
			return nil, nil
		}
	}
	if _, ok := o.BuildArgs["BUILDKIT_DOCKERFILE_CHECK"]; ok {
		return nil, nil // BuildKit's lowering takes it from a client alone
	}
	c.args, c.labels, c.target, c.hostname = o.BuildArgs, o.Labels, o.Target, o.Hostname
	if len(o.Platforms) == 0 {
		o.Platforms = []string{o.Platform}
	}
	var out []testcase
	for _, c.platform = range o.Platforms {
		out = append(out, c)
	}
	return out, nil
}

// buildkitCases are the string constants with a FROM line in the tests of the module that we compare with.
func buildkitCases() (out []testcase, err error) {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/moby/buildkit").Output()
	if err != nil {
		return nil, fmt.Errorf("find BuildKit's source: %w", err)
	}
	root := filepath.Join(strings.TrimSpace(string(dir)), "frontend", "dockerfile")
	for _, pattern := range []string{"*_test.go", "dockerfile2llb/*_test.go"} {
		names, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil || len(names) == 0 {
			return nil, fmt.Errorf("no tests at %s of BuildKit, %v", pattern, err)
		}
		for _, name := range names {
			found, err := constants(name)
			if err != nil {
				return nil, err
			}
			out = append(out, found...)
		}
	}
	return out, nil
}

var fromLine = regexp.MustCompile(`(?mi)^\s*FROM\s`)

func constants(name string) (out []testcase, err error) {
	f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
	if err != nil {
		return nil, err
	}
	fn, n := "", 0
	ast.Inspect(f, func(x ast.Node) bool {
		switch x := x.(type) {
		case *ast.FuncDecl:
			fn, n = x.Name.Name, 0
		case *ast.BasicLit:
			if text, err := strconv.Unquote(x.Value); err == nil && x.Kind == token.STRING && fromLine.MatchString(text) {
				n++
				out = append(out, testcase{name: fmt.Sprintf("BuildKit's %s, %s, %d", filepath.Base(name), fn, n), source: text})
			}
		}
		return true
	})
	return out, nil
}
