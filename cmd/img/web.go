package main

import (
	"path/filepath"

	"img/exec"
	"img/exec/fetch"
)

// fetchDir is where the state keeps what came from URLs and repositories.
const fetchDir = "exec/fetch"

// agentSocket is where git's ssh finds the agent of --ssh default. An agent of key files listens for as long as the build goes on.
func (b *build) agentSocket() string {
	a := b.r.Agents[defaultAgent]
	if a == nil || a.Socket != "" {
		return a.Path()
	}
	dir, remove, err := exec.TempDir(b.s.dir, "agent-")
	if err != nil {
		return ""
	}
	path, end, err := a.Listen(dir)
	if err != nil {
		remove()
		return ""
	}
	b.endAgent = func() { end(); remove() }
	return path
}

// web reaches URLs and git repositories for this build, with its secrets.
func (b *build) web() *fetch.Client {
	b.fetchers.Do(func() {
		known := []string{"/etc/ssh/ssh_known_hosts"}
		if home := b.g.getenv("HOME"); home != "" {
			known = append(known, filepath.Join(home, ".ssh", "known_hosts"))
		}
		b.fetcher = fetch.New(filepath.Join(b.s.dir, fetchDir), fetch.Options{
			Offline: b.c.Offline, Secret: b.secret, KnownHosts: known, Getenv: b.g.getenv, SSHAgent: b.agentSocket(),
		})
	})
	return b.fetcher
}
