package dockerfile

import (
	"github.com/containerd/platforms"

	"img/dag"
)

// Refs returns the images that the target and the stages it needs are made from (FROM, COPY --from, RUN --mount from), once each.
//
// Triggers (ONBUILD) of those images may need more, which nobody can know before their configurations are read: Lower asks for these.
func (f *File) Refs(o Options) (_ []BaseRef, err error) {
	b, err := f.prepare(o)
	if err != nil {
		return nil, err
	}
	defer func() { err = f.explain(b, err) }()
	unknown := func(*stage) ([]string, error) { return nil, nil }
	if err := b.reach(unknown); err != nil {
		return nil, err
	}
	var refs []BaseRef
	seen := map[BaseRef]bool{}
	add := func(s *stage, x outside, c *command) {
		if x.empty() || x.local != "" {
			return
		}
		ref := b.baseRef(s, x, c)
		key := ref
		key.Pos = dag.Pos{}
		if !seen[key] {
			seen[key] = true
			refs = append(refs, ref)
		}
	}
	for _, s := range b.stages {
		if !s.reachable {
			continue
		}
		add(s, s.outside, nil)
		for i := range s.commands {
			for _, from := range s.commands[i].from {
				add(s, from.outside, &s.commands[i])
			}
		}
	}
	return refs, nil
}

// baseRef is what is asked of the caller: for a FROM (c is nil) the stage's platform, for a --from the target's.
func (b *build) baseRef(s *stage, x outside, c *command) BaseRef {
	ref := BaseRef{Ref: x.ref, Layout: x.layout, Platform: formatPlatform(b.platform)}
	if c == nil {
		ref.Platform, ref.Pos = formatPlatform(s.platform), b.f.base(s.pos)
		return ref
	}
	ref.Pos = b.f.word(b.f.at(c.Location()), x.ref)
	return ref
}

func formatPlatform(p platforms.Platform) string { return platforms.Format(platforms.Normalize(p)) }
