package main

import (
	"context"
	"fmt"
	"net/url"
	"strings"
)

// isGitURL reports whether a context's place is a git repository.
func isGitURL(s string) bool {
	if isHTTP(s) {
		repo, _, _ := strings.Cut(s, "#")
		repo, _, _ = strings.Cut(repo, "?")
		return strings.HasSuffix(repo, ".git")
	}
	for _, prefix := range []string{"git://", "ssh://", "git@", "github.com/"} {
		if strings.HasPrefix(s, prefix) {
			return true
		}
	}
	return false
}

// shownURL is a URL without its credentials.
func shownURL(s string) string {
	u, err := url.Parse(s)
	if err != nil || u.User == nil {
		return s
	}
	u.User = nil
	return u.String()
}

func (b *build) fetchGit(_ context.Context, name, url string, _ *place) error {
	return sourceError(fmt.Errorf("%s %s: git repositories are not fetched in this version; clone it and build the directory", contextTitle(name), shownURL(url)))
}

func (b *build) fetchHTTP(_ context.Context, name, url string, _ *place) error {
	return sourceError(fmt.Errorf("%s %s: URLs are not fetched in this version; download it and build from that", contextTitle(name), shownURL(url)))
}

func (b *build) fetchDockerfile(_ context.Context, url string) error {
	return usagef("-f %s: URLs are not fetched in this version; download it and use -f FILE", shownURL(url))
}
