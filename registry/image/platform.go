package image

import (
	"context"
	"fmt"
	"sort"
	"strings"

	"github.com/containerd/platforms"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Platform selects from an index; the zero value is the host's.
type Platform = v1.Platform

// ParsePlatform reads "linux/arm64/v8", "arm64" or "linux"; what is not given is the host's.
func ParsePlatform(s string) (Platform, error) {
	p, err := platforms.Parse(s)
	if err != nil {
		return Platform{}, fmt.Errorf("platform %q: %w", s, err)
	}
	return fromSpec(platforms.Normalize(p)), nil
}

// HostPlatform returns the platform of this machine.
func HostPlatform() Platform { return fromSpec(platforms.DefaultSpec()) }

// FormatPlatform writes a platform as the user would: "linux/arm64", "linux/arm/v7".
func FormatPlatform(p Platform) string { return platforms.Format(platforms.Normalize(toSpec(p))) }

// Runs reports whether a machine for p runs images for other: the same platform, or an older variant of it. What other leaves open fits.
func Runs(p Platform, other *Platform) bool {
	if other == nil || other.OS == "" || other.Architecture == "" {
		return true
	}
	return platforms.Only(platforms.Normalize(toSpec(p))).Match(platforms.Normalize(toSpec(*other)))
}

func toSpec(p Platform) ocispec.Platform {
	return ocispec.Platform{Architecture: p.Architecture, OS: p.OS, OSVersion: p.OSVersion, OSFeatures: p.OSFeatures, Variant: p.Variant}
}

func fromSpec(p ocispec.Platform) Platform {
	return Platform{Architecture: p.Architecture, OS: p.OS, OSVersion: p.OSVersion, OSFeatures: p.OSFeatures, Variant: p.Variant}
}

// Select returns the descriptor of the manifest for a platform: an index is followed, an exact match is preferred to one that
// the platform can run as well (arm/v6 on arm/v7, 386 on amd64). Attestations are never selected. The error lists what
// platforms there are.
func Select(ctx context.Context, src Fetcher, d v1.Descriptor, p Platform) (v1.Descriptor, error) {
	if !d.MediaType.IsIndex() {
		return d, nil
	}
	if p.OS == "" && p.Architecture == "" {
		p = HostPlatform()
	}
	s := selection{src: src, seen: map[v1.Hash]bool{}}
	if err := s.walk(ctx, d, 1); err != nil {
		return v1.Descriptor{}, err
	}
	match := platforms.Only(platforms.Normalize(toSpec(p)))
	best := -1
	for i, f := range s.found {
		if match.Match(f.platform) && (best < 0 || match.Less(f.platform, s.found[best].platform)) {
			best = i
		}
	}
	if best < 0 {
		return v1.Descriptor{}, fmt.Errorf("index %s has no image for %s, only for %s: %w",
			d.Digest, FormatPlatform(p), s.names(), ErrNotFound)
	}
	return s.found[best].descriptor, nil
}

// A selection gathers the manifests of an index.
type selection struct {
	src   Fetcher
	seen  map[v1.Hash]bool
	found []candidate
}

type candidate struct {
	descriptor v1.Descriptor
	platform   ocispec.Platform
}

func (s *selection) walk(ctx context.Context, d v1.Descriptor, depth int) error {
	if s.seen[d.Digest] {
		return nil
	}
	if s.seen[d.Digest] = true; len(s.seen) > MaxDescriptors {
		return fmt.Errorf("more than %d descriptors", MaxDescriptors)
	}
	switch {
	case d.MediaType.IsIndex():
		return s.index(ctx, d, depth)
	case !d.MediaType.IsImage() || isAttestation(d):
		return nil
	case d.Platform != nil:
		s.add(d, toSpec(*d.Platform))
		return nil
	}
	cfg, err := s.config(ctx, d)
	if err != nil {
		return err
	}
	if cfg != nil {
		s.add(d, ocispec.Platform{Architecture: cfg.Architecture, OS: cfg.OS, Variant: cfg.Variant, OSVersion: cfg.OSVersion})
	}
	return nil
}

func (s *selection) add(d v1.Descriptor, p ocispec.Platform) {
	s.found = append(s.found, candidate{d, platforms.Normalize(p)})
}

func (s *selection) index(ctx context.Context, d v1.Descriptor, depth int) error {
	if depth > MaxDepth {
		return fmt.Errorf("index %s: indexes are nested deeper than %d", d.Digest, MaxDepth)
	}
	raw, err := ReadAll(ctx, s.src, d, MaxManifest)
	if err != nil {
		return fmt.Errorf("read index %s: %w", d.Digest, err)
	}
	idx, err := ParseIndex(raw)
	if err != nil {
		return fmt.Errorf("index %s: %w", d.Digest, err)
	}
	for _, m := range idx.Manifests {
		if err := s.walk(ctx, m, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// config reads the configuration of an entry that states no platform; nil if it is no image.
func (s *selection) config(ctx context.Context, d v1.Descriptor) (*v1.ConfigFile, error) {
	raw, err := ReadAll(ctx, s.src, d, MaxManifest)
	if err != nil {
		return nil, fmt.Errorf("read manifest %s: %w", d.Digest, err)
	}
	m, err := ParseManifest(raw)
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", d.Digest, err)
	}
	if !m.Config.MediaType.IsConfig() {
		return nil, nil
	}
	if raw, err = ReadAll(ctx, s.src, m.Config, MaxConfig); err != nil {
		return nil, fmt.Errorf("read config %s: %w", m.Config.Digest, err)
	}
	cfg, _, err := ParseConfig(raw)
	return cfg, err
}

// isAttestation tells entries that describe other entries; BuildKit gives them the platform unknown/unknown.
func isAttestation(d v1.Descriptor) bool {
	return d.Annotations["vnd.docker.reference.type"] != "" ||
		d.Platform != nil && d.Platform.OS == "unknown" && d.Platform.Architecture == "unknown"
}

func (s *selection) names() string {
	if len(s.found) == 0 {
		return "no platform at all"
	}
	set := map[string]bool{}
	for _, f := range s.found {
		set[platforms.Format(f.platform)] = true
	}
	var names []string
	for n := range set {
		names = append(names, n)
	}
	sort.Strings(names)
	return strings.Join(names, ", ")
}
