package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
	"github.com/pelletier/go-toml/v2"
)

// settings are the values of options that no flag gave: the environment's, then the configuration file's. The file is
//
//	debug = true           # a global option
//
//	[build]                # options of a command
//	progress = "plain"
//	build-arg = ["A=1"]
//
// and the environment's names are IMG_DEBUG and IMG_BUILD_PROGRESS; those of build that say how and not what to build
// have a short name as well, IMG_PROGRESS.
type settings struct {
	path   string
	values map[string]any
	getenv func(string) string
}

// loadSettings reads the configuration file. One that is named must exist.
func loadSettings(args []string, getenv func(string) string) (*settings, error) {
	path, named := configPath(args, getenv)
	s := &settings{path: path, getenv: getenv}
	text, err := os.ReadFile(path)
	if path == "" || !named && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission)) {
		return s, nil // sudo and su leave people with a HOME that is not theirs
	}
	if err != nil {
		return nil, withCode(exitUsage, fmt.Errorf("read configuration: %w", err))
	}
	if err := toml.NewDecoder(bytes.NewReader(text)).Decode(&s.values); err != nil {
		var at *toml.DecodeError
		if errors.As(err, &at) {
			line, column := at.Position()
			return nil, usagef("%s:%d:%d: %s", path, line, column, strings.TrimPrefix(at.Error(), "toml: "))
		}
		return nil, usagef("read configuration %s: %w", path, err)
	}
	return s, nil
}

// configPath finds the file before anything is parsed, since parsing needs it.
func configPath(args []string, getenv func(string) string) (path string, named bool) {
	for i, a := range args {
		if a == "--" {
			break
		}
		if v, ok := strings.CutPrefix(a, "--config="); ok {
			return v, true
		}
		if a == "--config" && i+1 < len(args) {
			return args[i+1], true
		}
	}
	if v := getenv("IMG_CONFIG"); v != "" {
		return v, true
	}
	dir := getenv("XDG_CONFIG_HOME")
	if !filepath.IsAbs(dir) {
		if !filepath.IsAbs(getenv("HOME")) {
			return "", false
		}
		dir = filepath.Join(getenv("HOME"), ".config")
	}
	return filepath.Join(dir, "img", "config.toml"), false
}

// resolve gives an option's value, or nil.
func (s *settings) resolve(node *kong.Node, f *kong.Flag) (any, error) {
	if f.Name == "help" || f.Name == "config" {
		return nil, nil
	}
	value, _ := s.find(commandPath(node), f)
	return value, nil
}

// find gives an option's value and where it comes from.
func (s *settings) find(command string, f *kong.Flag) (value any, origin string) {
	for _, name := range envNames(command, f.Name) {
		if v := s.getenv(name); v != "" {
			return v, name
		}
	}
	table := s.values
	if command != "" {
		table, _ = s.values[command].(map[string]any)
	}
	for _, key := range []string{f.Name, strings.ReplaceAll(f.Name, "-", "_")} {
		if v, ok := table[key]; ok {
			return tomlValue(v), s.path
		}
	}
	return nil, ""
}

// tomlValue makes what kong's mappers take: they know no int64 for text options.
func tomlValue(v any) any {
	switch v := v.(type) {
	case int64, float64:
		return fmt.Sprint(v)
	case []any:
		for i := range v {
			v[i] = tomlValue(v[i])
		}
	}
	return v
}

// shortNames are the options of build that IMG_NAME sets, too. What is built and where it goes is not among them: variables
// like IMG_TAG and IMG_TARGET are common in CI, and mean something of the user's own there.
var shortNames = []string{"jobs", "no-cache", "no-console", "offline", "progress", "pull"}

func envNames(command, flag string) []string {
	upper := func(s string) string { return strings.ToUpper(strings.NewReplacer("-", "_", " ", "_").Replace(s)) }
	switch command {
	case "":
		return []string{"IMG_" + upper(flag)}
	case "build":
		if slices.Contains(shortNames, flag) {
			return []string{"IMG_BUILD_" + upper(flag), "IMG_" + upper(flag)}
		}
	}
	return []string{"IMG_" + upper(command) + "_" + upper(flag)}
}

// commandPath is the name a command's options are kept under: "build", "" for globals.
func commandPath(node *kong.Node) string {
	if node == nil || node.Type != kong.CommandNode {
		return ""
	}
	return node.Name
}

// check refuses keys that mean nothing, so that a typing error does not go unnoticed.
func (s *settings) check(app *kong.Application) error {
	for key, value := range s.values {
		if hasFlag(app.Node, key) {
			continue
		}
		command := child(app.Node, key)
		table, ok := value.(map[string]any)
		if command == nil || !ok {
			return usagef("%s: there is no option %q", s.path, key)
		}
		for option := range table {
			if !hasFlag(command, option) {
				return usagef("%s: %s has no option %q", s.path, key, option)
			}
		}
	}
	return nil
}

func hasFlag(n *kong.Node, key string) bool {
	return slices.ContainsFunc(n.Flags, func(f *kong.Flag) bool {
		return f.Name == strings.ReplaceAll(key, "_", "-")
	})
}

func child(n *kong.Node, name string) *kong.Node {
	i := slices.IndexFunc(n.Children, func(c *kong.Node) bool { return c.Name == name })
	if i < 0 {
		return nil
	}
	return n.Children[i]
}

// ConfigCmd is `img config`.
type ConfigCmd struct {
	All    bool   `short:"a" help:"Include options that have no value."`
	Format string `placeholder:"FORMAT" default:"table" help:"table, json or a Go template."`
}

// A configLine is one option's value and where it comes from.
type configLine struct {
	Option string
	Value  string
	Origin string
}

// Run prints each effective value and its origin.
func (c *ConfigCmd) Run(k *kong.Context, g *Globals) error {
	given := map[string]bool{}
	for _, p := range k.Path {
		if p.Flag != nil && !p.Resolved {
			given[p.Flag.Name] = true
		}
	}
	t := table{Columns: []string{"OPTION", "VALUE", "ORIGIN"}}
	add := func(command string, f *kong.Flag) {
		l := g.settings.line(command, f)
		if command == "" && given[f.Name] {
			l = configLine{f.Name, plainValue(f.Target.Interface()), "flag"}
		}
		if l.Value != "" || c.All {
			t.add(l, l.Option, l.Value, l.Origin)
		}
	}
	for _, f := range g.model.Model.Flags {
		if f.Name != "help" {
			add("", f)
		}
	}
	for _, n := range g.model.Model.Children {
		for _, f := range n.Flags {
			if !n.Hidden {
				add(n.Name, f)
			}
		}
	}
	return t.print(g.stdout, c.Format)
}

func (s *settings) line(command string, f *kong.Flag) configLine {
	l := configLine{Option: f.Name}
	if command != "" {
		l.Option = command + "." + f.Name
	}
	value, origin := s.find(command, f)
	switch {
	case f.Name == "config":
		l.Value, l.Origin = s.path, "default"
		if s.getenv("IMG_CONFIG") != "" {
			l.Origin = "IMG_CONFIG"
		}
	case value != nil:
		l.Value, l.Origin = plainValue(value), origin
	case f.Name == "state":
		l.Value, l.Origin = statePath("", s.getenv), "default"
	case f.HasDefault:
		l.Value, l.Origin = f.Default, "default"
	}
	return l
}

// plainValue shows a value on one line; lists by commas.
func plainValue(v any) string {
	r := reflect.ValueOf(v)
	if r.Kind() != reflect.Slice {
		return fmt.Sprint(v)
	}
	var words []string
	for i := range r.Len() {
		words = append(words, fmt.Sprint(r.Index(i).Interface()))
	}
	return strings.Join(words, ",")
}
