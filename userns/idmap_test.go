package userns

import "testing"

// Every file-system id has at most one id outside, every id outside at most one file-system id, and the owner is the block's first.
func TestOwnerFirst(t *testing.T) {
	for _, n := range []uint32{1, 2, 10} {
		for owner := range uint32(14) {
			block := Range{Container: 0, Host: 1000, Count: n}
			from, to := map[uint32]uint32{}, map[uint32]bool{}
			for _, r := range OwnerFirst(owner, block) {
				for i := range r.Count {
					id, host := r.Container+i, r.Host+i
					if _, twice := from[id]; twice || to[host] {
						t.Fatalf("owner %d of %d: %d -> %d is mapped twice", owner, n, id, host)
					}
					if host < 1000 || host >= 1000+n {
						t.Fatalf("owner %d of %d: %d -> %d is outside of the block", owner, n, id, host)
					}
					from[id], to[host] = host, true
				}
			}
			if from[owner] != 1000 {
				t.Errorf("owner %d of %d is shown as %d", owner, n, from[owner])
			}
			if uint32(len(to)) != n {
				t.Errorf("owner %d of %d: %d ids are mapped", owner, n, len(to))
			}
		}
	}
}
