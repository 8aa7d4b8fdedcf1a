package userns

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

const (
	// overflowID is what the kernel shows for ids without a mapping: "nobody".
	overflowID = 65534
	// wanted is how many ids images expect.
	wanted = 65536
	// topID and the one above it are no ids: -2 and -1 of old interfaces.
	topID = 1<<32 - 2
	// maxExtents is how many lines an id map can have.
	maxExtents = 340
)

// A span is the ids lo <= id < hi.
type span struct{ lo, hi uint64 }

func (s span) size() uint64 { return s.hi - s.lo }

// parseMap reads the inside column of /proc/self/uid_map: the ids that exist for this process, ascending.
func parseMap(text string) []span {
	var out []span
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) != 3 {
			continue
		}
		lo, err := strconv.ParseUint(f[0], 10, 32)
		n, err2 := strconv.ParseUint(f[2], 10, 32)
		if err == nil && err2 == nil && n > 0 {
			out = append(out, span{lo, min(lo+n, 1<<32)})
		}
	}
	return merged(out)
}

// merged sorts spans and joins those that touch.
func merged(spans []span) []span {
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.lo, b.lo) })
	var out []span
	for _, s := range spans {
		if n := len(out); n > 0 && s.lo <= out[n-1].hi {
			out[n-1].hi = max(out[n-1].hi, s.hi)
		} else if s.size() > 0 {
			out = append(out, s)
		}
	}
	return out
}

// without takes the holes out of spans.
func without(spans []span, holes ...span) []span {
	for _, h := range merged(slices.Clone(holes)) {
		var out []span
		for _, s := range spans {
			if h.hi <= s.lo || s.hi <= h.lo {
				out = append(out, s)
				continue
			}
			if s.lo < h.lo {
				out = append(out, span{s.lo, h.lo})
			}
			if h.hi < s.hi {
				out = append(out, span{h.hi, s.hi})
			}
		}
		spans = out
	}
	return spans
}

// within is what of s exists in spans.
func within(s span, spans []span) []span {
	var out []span
	for _, x := range spans {
		if lo, hi := max(s.lo, x.lo), min(s.hi, x.hi); lo < hi {
			out = append(out, span{lo, hi})
		}
	}
	return out
}

// consecutively maps spans to container ids from first on, at most limit of them.
func consecutively(first, limit uint64, spans []span) []Range {
	var out []Range
	for _, s := range spans {
		n := min(s.size(), limit)
		if n == 0 || len(out) == maxExtents {
			break
		}
		out = append(out, Range{uint32(first), uint32(s.lo), uint32(n)})
		first, limit = first+n, limit-n
	}
	return out
}

// joined is the same mapping with as few ranges as possible, ascending, so that equal mappings look equal.
func joined(ranges []Range) []Range {
	ranges = slices.Clone(ranges)
	slices.SortFunc(ranges, func(a, b Range) int { return cmp.Compare(a.Container, b.Container) })
	var out []Range
	for _, r := range ranges {
		if n := len(out); n > 0 && out[n-1].Container+out[n-1].Count == r.Container && out[n-1].Host+out[n-1].Count == r.Host {
			out[n-1].Count += r.Count
		} else if r.Count > 0 {
			out = append(out, r)
		}
	}
	return out
}

// joinedInside is the container ids of ranges.
func joinedInside(ranges []Range) []span {
	var out []span
	for _, r := range ranges {
		out = append(out, span{uint64(r.Container), uint64(r.Container) + uint64(r.Count)})
	}
	return merged(out)
}
