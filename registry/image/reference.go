package image

import (
	"fmt"

	"github.com/distribution/reference"
)

// NormalizeRef returns the full form of an image name: "debian" is "docker.io/library/debian:latest". Digests are kept,
// and no tag is added to a name with a digest.
func NormalizeRef(s string) (string, error) {
	named, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return "", fmt.Errorf("image name %q: %w", s, err)
	}
	return reference.TagNameOnly(named).String(), nil
}

// Familiar returns the short form of a full name, for people and for Docker: "debian:latest". What is no name comes back as it is.
func Familiar(ref string) string {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ref
	}
	return reference.FamiliarString(named)
}
