package main

import (
	"path/filepath"

	"img/exec/fetch"
)

// fetchDir is where the state keeps what came from URLs and repositories.
const fetchDir = "exec/fetch"

// web reaches URLs and git repositories for this build, with its secrets.
func (b *build) web() *fetch.Client {
	b.fetchers.Do(func() {
		known := []string{"/etc/ssh/ssh_known_hosts"}
		if home := b.g.getenv("HOME"); home != "" {
			known = append(known, filepath.Join(home, ".ssh", "known_hosts"))
		}
		b.fetcher = fetch.New(filepath.Join(b.s.dir, fetchDir), fetch.Options{
			Offline: b.c.Offline, Secret: b.secret, KnownHosts: known, Getenv: b.g.getenv,
		})
	})
	return b.fetcher
}
