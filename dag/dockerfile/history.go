package dockerfile

import (
	"slices"
	"time"
)

// Comments of history entries; tools tell BuildKit's images by them.
const (
	historyComment  = "buildkit.dockerfile.v0"
	exporterComment = "buildkit.exporter.image.v0"
)

// A historyEntry is an entry of an image's history. New ones have no time yet.
type historyEntry struct {
	Created    *time.Time `json:"created,omitempty"`
	CreatedBy  string     `json:"created_by,omitempty"`
	Author     string     `json:"author,omitempty"`
	Comment    string     `json:"comment,omitempty"`
	EmptyLayer bool       `json:"empty_layer,omitempty"`
}

// A history is a list of entries, last first. Stages share their base's, so that long chains of stages cost no copies.
type history struct {
	entry  historyEntry
	before *history
}

func (h *history) entries() (out []historyEntry) {
	for ; h != nil; h = h.before {
		out = append(out, h.entry)
	}
	slices.Reverse(out)
	return out
}

// remember adds an entry to a stage's history.
func (s *stage) remember(createdBy string, layer bool) {
	s.past = &history{entry: historyEntry{CreatedBy: createdBy, Comment: historyComment, EmptyLayer: !layer}, before: s.past}
}

// built ends the entry of an instruction that BuildKit's solver runs: RUN, COPY and ADD.
const built = " # buildkit"
