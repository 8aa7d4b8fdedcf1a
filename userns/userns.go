// Package userns enters a user namespace with mapped ids, and says what this host allows.
//
// It knows nothing of root file systems, images or steps.
package userns

import (
	"crypto/sha256"
	"fmt"
	"strings"
)

// A Range maps Count ids from Container (inside) to Host (outside).
type Range struct{ Container, Host, Count uint32 }

// A Mapping is the ids of a build.
type Mapping struct {
	UIDs, GIDs []Range
	// Why says in one line why the mapping is weaker than it could be; "" when it is not.
	Why string
}

// Single reports whether only one id is mapped (no subordinate ids).
func (m Mapping) Single() bool { return total(m.UIDs) <= 1 || total(m.GIDs) <= 1 }

// IDs is how many consecutive container ids, from 0, are mapped in both maps.
func (m Mapping) IDs() uint32 { return min(consecutive(m.UIDs), consecutive(m.GIDs)) }

// Label names the mapping in paths: short, lower-case letters, digits and dashes, equal for equal mappings. It begins with the
// host's id of container root and the number of ids, for people.
func (m Mapping) Label() string {
	sum := sha256.Sum256([]byte(mapText(joined(m.UIDs)) + "/\n" + mapText(joined(m.GIDs))))
	return fmt.Sprintf("%d-%d-%x", m.HostUID(), m.IDs(), sum[:4])
}

// HostUID returns the host id of container user 0.
func (m Mapping) HostUID() uint32 { return rootOf(m.UIDs) }

// HostGID returns the host id of container group 0.
func (m Mapping) HostGID() uint32 { return rootOf(m.GIDs) }

func total(ranges []Range) (n uint64) {
	for _, r := range ranges {
		n += uint64(r.Count)
	}
	return n
}

func consecutive(ranges []Range) uint32 {
	if j := joinedInside(ranges); len(j) > 0 && j[0].lo == 0 {
		return uint32(j[0].hi)
	}
	return 0
}

// rootOf is the host id of container id 0; the overflow id if it is not mapped.
func rootOf(ranges []Range) uint32 {
	for _, r := range ranges {
		if r.Container == 0 && r.Count > 0 {
			return r.Host
		}
	}
	return overflowID
}

// mapText is the ranges as the kernel writes them: "inside outside count", a line each.
func mapText(ranges []Range) string {
	var b strings.Builder
	for _, r := range ranges {
		fmt.Fprintf(&b, "%d %d %d\n", r.Container, r.Host, r.Count)
	}
	return b.String()
}
