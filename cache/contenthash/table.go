package contenthash

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"slices"
	"sort"
)

// An index's file is
//
//	"img files 2\n"
//	id (16 bytes) digest (32 bytes) age (1 byte)     once per file, sorted by id, no id twice
//	...
//	SHA-256 of all before (32 bytes)
//
// It is searched as it lies in memory; nothing is decoded.
const magic = "img files 2\n"

// An id stands for a path and a stat: the first half of a SHA-256 over them.
type id [16]byte

// A digest is the SHA-256 of a file's content.
type digest [sha256.Size]byte

// id hashes the five numbers, then the path.
func (s stat) id(path string) id {
	b := make([]byte, 0, 256)
	for _, n := range []uint64{s.dev, s.ino, uint64(s.size), uint64(s.mtime), uint64(s.ctime)} {
		b = binary.LittleEndian.AppendUint64(b, n)
	}
	sum := sha256.Sum256(append(b, path...))
	return id(sum[:16])
}

const entrySize = len(id{}) + len(digest{}) + 1

// A table is the entries of an index's file.
type table []byte

var errDamaged = errors.New("damaged index of file digests")

// decode returns the table of a whole and sorted file.
func decode(data []byte) (table, error) {
	if len(data) < len(magic)+sha256.Size || string(data[:len(magic)]) != magic {
		return nil, errDamaged
	}
	body, sum := data[:len(data)-sha256.Size], data[len(data)-sha256.Size:]
	if got := sha256.Sum256(body); !bytes.Equal(got[:], sum) {
		return nil, errDamaged
	}
	t := table(body[len(magic):])
	if len(t)%entrySize != 0 || !t.sorted() {
		return nil, errDamaged
	}
	return t, nil
}

func (t table) len() int        { return len(t) / entrySize }
func (t table) id(i int) []byte { return t[i*entrySize:][:len(id{})] }

func (t table) digest(i int) digest {
	return digest(t[i*entrySize:][len(id{}) : entrySize-1])
}

// age is how many saves have not used the entry.
func (t table) age(i int) byte { return t[(i+1)*entrySize-1] }

func (t table) sorted() bool {
	for i := 1; i < t.len(); i++ {
		if bytes.Compare(t.id(i-1), t.id(i)) >= 0 {
			return false
		}
	}
	return true
}

// find returns the position of an id.
func (t table) find(k id) (int, bool) {
	return sort.Find(t.len(), func(i int) int { return bytes.Compare(k[:], t.id(i)) })
}

// encode merges the entries of t that are kept, with their ages, with those found since.
func encode(t table, aging func(int) (age byte, keep bool), found map[id]digest) []byte {
	ids := make([]id, 0, len(found))
	for k := range found {
		ids = append(ids, k)
	}
	slices.SortFunc(ids, func(a, b id) int { return bytes.Compare(a[:], b[:]) })
	out := make([]byte, 0, len(magic)+len(t)+len(ids)*entrySize+sha256.Size)
	out = append(out, magic...)
	for i := range t.len() {
		for len(ids) > 0 && bytes.Compare(ids[0][:], t.id(i)) < 0 {
			out = appendEntry(out, ids[0], found[ids[0]])
			ids = ids[1:]
		}
		if age, keep := aging(i); keep {
			out = append(append(out, t[i*entrySize:][:entrySize-1]...), age)
		}
	}
	for _, k := range ids {
		out = appendEntry(out, k, found[k])
	}
	sum := sha256.Sum256(out)
	return append(out, sum[:]...)
}

func appendEntry(b []byte, k id, d digest) []byte {
	return append(append(append(b, k[:]...), d[:]...), 0)
}
