package main

import (
	"os"
	"reflect"
	"strings"
	"testing"
)

// What PATH and the value of a --build-context mean. A directory goes before a URL.
func TestContextKinds(t *testing.T) {
	t.Chdir(t.TempDir())
	mkdirs(t, "dir", "github.com/me/here", "https:/x.test/a")
	for value, want := range map[string]string{
		".": "dir", "dir": "dir", "nothere": "dir", "./dir": "dir", "a:b": "dir", "-": "-",
		"github.com/me/here": "dir", "github.com/me/there": "git", "github.com/me/r#main:sub": "git",
		"https://h.test/r.git": "git", "https://h.test/r.git#v1:sub": "git", "https://h.test/r.git?ref=v1": "git", "http://h.test/r.git": "git",
		"git@h.test:me/r": "git", "git@h.test:me/r.git#v1": "git", "ssh://git@h.test/r": "git", "git://h.test/r": "git",
		"https://h.test/r": "http", "http://h.test/a.tar.gz": "http", "https://h.test/r.github": "http", "https://x.test/a": "dir",
	} {
		if got := mainContext(value).Kind; got != want {
			t.Errorf("%s is of kind %s, want %s", value, got, want)
		}
	}
}

func TestParseContexts(t *testing.T) {
	t.Chdir(t.TempDir())
	mkdirs(t, "dir", "s3:x")
	type m = map[string]NamedContext
	for _, c := range []struct {
		args string
		want m
		err  string
	}{
		{"a=dir b=nothere", m{"a": {"dir", "dir"}, "b": {"dir", "nothere"}}, ""},
		{"Base=docker-image://debian:12", m{"base": {"docker-image", "debian:12"}}, ""},
		{"docker.io/library/alpine:latest=dir", m{"alpine": {"dir", "dir"}}, ""},
		{"alpine:3.20=oci-layout:///l:v@sha256:1", m{"alpine:3.20": {"oci-layout", "/l:v@sha256:1"}}, ""},
		{"a::linux/x86_64=dir a=s3:x", m{"a::linux/amd64": {"dir", "dir"}, "a": {"dir", "s3:x"}}, ""},
		{"a=https://h.test/r.git b=https://h.test/f", m{"a": {"git", "https://h.test/r.git"}, "b": {"http", "https://h.test/f"}}, ""},
		{"a=dir a=docker-image://x", m{"a": {"docker-image", "x"}}, ""},
		{"context=dir scratch=dir", m{}, ""},
		{"a=target:web", nil, "bake file"},
		{"a=input:web", nil, "front ends"},
		{"a=ftp://h.test/x", nil, "ftp:// is no kind of context"},
		{"a=-", nil, "standard input"},
		{"a", nil, "NAME=VALUE"},
		{"=dir", nil, "NAME=VALUE"},
		{"a=", nil, "NAME=VALUE"},
		{"a/../b=dir", nil, "invalid reference"},
		{"a::plan/nine/x/y/z=dir", nil, "a::plan"},
	} {
		got, err := parseContexts(strings.Fields(c.args), &Globals{stderr: t.Output()})
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: error %v, want %s", c.args, err, c.err)
			}
		} else if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %v, %v; want %v", c.args, got, err, c.want)
		}
	}
}

func mkdirs(t *testing.T, dirs ...string) {
	t.Helper()
	for _, d := range dirs {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}
