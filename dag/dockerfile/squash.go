package dockerfile

import (
	"fmt"
	"slices"
	"strings"

	"img/dag"
)

// layerSteps are the steps that make the layers of a stage above its base image, first to last.
func (s *stage) layerSteps() (steps []*layerList) {
	for at := s.layers; at != nil; at = at.below {
		steps = append(steps, at)
	}
	slices.Reverse(steps)
	return steps
}

// squashes is how many layers of the target become one; 0 for none. One layer alone stays as it is.
func (l *lowering) squashes(t *stage) int {
	n := len(t.layerSteps())
	switch {
	case l.o.SquashAll && t.image != nil:
		n += len(t.image.Layers)
	case !l.o.Squash && !l.o.SquashAll:
		return 0
	}
	if n < 2 {
		return 0
	}
	return n
}

// squash makes one Pack of the target's layers.
func (l *lowering) squash(t *stage, pack *dag.Pack) *dag.Vertex {
	of := l.graph.Vertex(t.files)
	v := &dag.Vertex{Op: pack, Name: fmt.Sprintf("layer of %d layers", l.squashes(t)), Stage: t.label(), Platform: of.Platform}
	in := inputs{v}
	pack.Squash, pack.Of, pack.Above = true, in.ref(t.files), dag.Scratch
	if !l.o.SquashAll {
		pack.Above = in.ref(t.root)
	}
	for _, at := range t.layerSteps() {
		if pack.Epoch != nil && l.fromContext(l.graph.Vertex(at.of)) {
			pack.FromContexts = append(pack.FromContexts, in.ref(at.state))
		}
	}
	return v
}

// squashHistory makes a history of n squashed layers as Docker's does: what was done stays, but without layers of its own, and one more entry
// has the layer. The first kept entries are the base's, whose layers stay.
func squashHistory(entries []historyEntry, kept, n int) []historyEntry {
	for i := kept; i < len(entries); i++ {
		entries[i].EmptyLayer = true
	}
	return append(entries, historyEntry{Comment: fmt.Sprintf("squashed %d layers", n)})
}

// settle makes of what the instructions say the configuration that the options want: names that are to be gone, labels of the command line,
// and the history.
func (l *lowering) settle(c *imageConfig, t *stage) {
	for _, name := range l.o.UnsetEnv {
		c.Config.Env = slices.DeleteFunc(c.Config.Env, func(kv string) bool { k, _, _ := strings.Cut(kv, "="); return k == name })
	}
	for _, name := range l.o.UnsetLabels {
		delete(c.Config.Labels, name)
	}
	if n := l.squashes(t); n > 0 {
		kept := 0
		if t.image != nil && !l.o.SquashAll {
			kept = len(t.image.Config.History)
		}
		c.History = squashHistory(c.History, kept, n)
	}
	if l.o.OmitHistory {
		c.History = nil
	}
}
