package main

import (
	"cmp"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// VersionCmd is `img version`.
type VersionCmd struct {
	Format string `placeholder:"FORMAT" help:"json, or a Go template."`
}

// A versionInfo is what `img version` shows.
type versionInfo struct {
	Version    string
	GitHash    string
	GoVersion  string
	GoCompiler string
	Platform   string
	Runc       runcInfo
}

// A runcInfo is the version of the library that starts processes.
type runcInfo struct {
	Version string
	Spec    string
}

// Run prints the original's blocks.
func (c *VersionCmd) Run(g *Globals) error {
	info := versions()
	switch c.Format {
	case "":
		_, err := fmt.Fprintf(g.stdout, `img:
 version     : %s
 git hash    : %s
 go version  : %s
 go compiler : %s
 platform    : %s
runc:
 version     : %s
 spec        : %s
`, info.Version, info.GitHash, info.GoVersion, info.GoCompiler, info.Platform, info.Runc.Version, info.Runc.Spec)
		return err
	case "json":
		return printJSON(g.stdout, info)
	}
	t, err := parseTemplate(c.Format)
	if err != nil {
		return err
	}
	return execute(g.stdout, t, info)
}

// printShortVersion is `img -v`.
func printShortVersion(w io.Writer) error {
	_, err := fmt.Fprintf(w, "img version %s, build %s\n", version, cmp.Or(commit, revision()))
	return err
}

func versions() versionInfo {
	info := versionInfo{
		Version:    version,
		GitHash:    cmp.Or(commit, revision()),
		GoVersion:  runtime.Version(),
		GoCompiler: runtime.Compiler,
		Platform:   runtime.GOOS + "/" + runtime.GOARCH,
		Runc:       runcInfo{Version: "unknown", Spec: specs.Version},
	}
	if b, ok := debug.ReadBuildInfo(); ok {
		for _, d := range b.Deps {
			if d.Path == "github.com/opencontainers/runc" {
				info.Runc.Version = d.Version
			}
		}
	}
	return info
}

// revision is the commit that the Go command noted, for builds without -ldflags.
func revision() string {
	if b, ok := debug.ReadBuildInfo(); ok {
		for _, s := range b.Settings {
			if s.Key == "vcs.revision" {
				return s.Value
			}
		}
	}
	return "unknown"
}
